# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/prefill.py`, `Writers`: when an encode worker counts as dead, and what follows (R6).

The peer is a stand-in: a process that hangs for exactly two probes cannot be had otherwise.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.messages import Done, Reserve, dump
from dynamo.sglang_mm_resume.workers.prefill import Writers
from tests.transport.pair import DEADLINE_S, ReceivingSide

WRITER = 7
SETTINGS = Settings(heartbeat_interval_s=0.02, heartbeat_max_failures=2, drain_s=0.01)
TRANSFER = "transfer-a"


class FakeEncodeWorkers:
    """A Dynamo client. Answers `Done`, or fails, as told; keeps or forgets the instance."""

    def __init__(self) -> None:
        self.answers = True
        self.hangs = False
        self.listed = True
        self.asked: list[str] = []

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append(request["op"])
        if not self.answers:
            raise Exception("Unavailable: connection refused")
        return self._nothing() if self.hangs else self._done()

    def instance_ids(self) -> list[int]:
        return [WRITER] if self.listed else []

    async def _done(self) -> AsyncIterator[Any]:
        yield dump(Done())

    async def _nothing(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


class WatchingSide(ReceivingSide):
    """Asks as a prefill worker does."""

    def __init__(self, workers: FakeEncodeWorkers, num_blocks: int = 2, **limits: Any) -> None:
        super().__init__(num_blocks, 1, **limits)
        self.writers = Writers(workers, SETTINGS)

    async def _ask_writer(self, writer: int, transfer_id: str) -> bool:
        return await self.writers.close_transfer(writer, transfer_id)


@asynccontextmanager
async def _watching(side: WatchingSide) -> AsyncIterator[None]:
    await side.start()
    watching = asyncio.ensure_future(side.writers.watch(side.assembler))
    try:
        yield
    finally:
        watching.cancel()
        await side.stop()


@asynccontextmanager
async def _a_granted_transfer(workers: FakeEncodeWorkers) -> AsyncIterator[WatchingSide]:
    """One block granted to `WRITER`, which is probed."""
    side = WatchingSide(workers)
    async with _watching(side):
        await side.assembler.reserve(Reserve(transfer_id=TRANSFER, writer_instance_id=WRITER))
        yield side


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(SETTINGS.heartbeat_interval_s)


async def _until_sooner(condition: Callable[[], bool]) -> None:
    """As `_until`, but looks several times an interval."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(SETTINGS.heartbeat_interval_s / 10)


@pytest.fixture
def workers() -> FakeEncodeWorkers:
    return FakeEncodeWorkers()


async def test_a_live_writer_is_probed_and_keeps_its_transfer(workers: FakeEncodeWorkers) -> None:
    async with _a_granted_transfer(workers) as side:
        await _until(lambda: workers.asked.count("ping") >= 3)
        assert TRANSFER in side.receiver.writing


async def test_a_writer_that_fails_its_probes_loses_its_transfers(
    workers: FakeEncodeWorkers,
) -> None:
    workers.answers = False
    async with _a_granted_transfer(workers) as side:
        await _until(lambda: not side.receiver.writing)
        assert workers.asked.count("ping") >= SETTINGS.heartbeat_max_failures
        assert side.pool.stats().quarantined == 1, "not free: nobody confirmed anything"
        with pytest.raises(TransferFailed, match=f"encode worker {WRITER} is dead"):
            side.assembler.try_grant(TRANSFER, 4)  # the processor does not know yet


async def test_a_closed_transfer_is_settled_by_its_writer(workers: FakeEncodeWorkers) -> None:
    assert await Writers(workers, SETTINGS).close_transfer(WRITER, TRANSFER)
    assert workers.asked == ["close"]


async def test_closing_alone_never_finds_a_writer_dead(workers: FakeEncodeWorkers) -> None:
    """However many of its transfers are being closed: each would count, and one silence suffice."""
    workers.answers = workers.listed = False
    writers = Writers(workers, SETTINGS)
    assert [await writers.close_transfer(WRITER, TRANSFER) for _ in range(5)] == [False] * 5


async def test_a_close_that_fails_is_no_failed_probe(workers: FakeEncodeWorkers) -> None:
    """Seen with two failures allowed: a close and a probe in one interval lost every transfer."""
    workers.hangs = True
    async with _a_granted_transfer(workers) as side:
        closing = [side.writers.close_transfer(WRITER, f"transfer-{i}") for i in range(8)]
        assert not any(await asyncio.gather(*closing))
        await _until(lambda: not side.receiver.writing)
        assert side.writers.probes.failed == SETTINGS.heartbeat_max_failures


async def test_a_writer_that_answers_now_and_then_is_not_dead(workers: FakeEncodeWorkers) -> None:
    """Failures count in a row."""
    async with _a_granted_transfer(workers) as side:
        for _ in range(2 * SETTINGS.heartbeat_max_failures):
            workers.answers = False
            failed = side.writers.probes.failed
            await _until_sooner(lambda failed=failed: side.writers.probes.failed > failed)
            workers.answers = True
            answered = side.writers.probes.answered
            await _until_sooner(lambda answered=answered: side.writers.probes.answered > answered)
        assert TRANSFER in side.receiver.writing


@pytest.mark.parametrize("listed", [True, False], ids=["still-listed", "gone"])
async def test_blocks_return_when_a_writer_is_silent_and_gone(
    workers: FakeEncodeWorkers, listed: bool
) -> None:
    """R6: a writer that hangs, and one whose lease outlives it, keep their blocks."""
    workers.answers, workers.listed = False, listed
    async with _a_granted_transfer(workers) as side:
        if listed:
            failed = SETTINGS.heartbeat_max_failures + 2
            await _until(lambda: side.writers.probes.failed > failed)
            assert side.pool.stats().quarantined == 1
            workers.listed = False
        await _until(lambda: side.pool.stats().free == 2)
        assert side.writers.probes.failed >= SETTINGS.heartbeat_max_failures


@pytest.mark.parametrize("listed", [True, False], ids=["still-listed", "gone-or-made-up"])
async def test_a_silent_writer_is_forgotten_once_its_blocks_are_home(
    workers: FakeEncodeWorkers, listed: bool
) -> None:
    """Workers come and go for months, and ids may be made up: what is kept for each must not add
    up, nor count against a writer that comes again.
    """
    async with _a_granted_transfer(workers) as side:
        workers.answers, workers.listed = False, listed
        await _until(lambda: not side.receiver.writing)
        assert side.writers._failed_probes or not side.receiver.writers
        side.assembler.abort(TRANSFER, writer_closed=True)
        await _until(lambda: not side.writers._failed_probes)
