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
        self.listed = True
        self.asked: list[str] = []

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append(request["op"])
        if not self.answers:
            raise Exception("Unavailable: connection refused")
        return self._done()

    def instance_ids(self) -> list[int]:
        return [WRITER] if self.listed else []

    async def _done(self) -> AsyncIterator[Any]:
        yield dump(Done())


@asynccontextmanager
async def _a_granted_transfer(workers: FakeEncodeWorkers) -> AsyncIterator[ReceivingSide]:
    """One block granted to `WRITER`, which is probed."""
    side = ReceivingSide(2, 1)
    watching = asyncio.ensure_future(Writers(workers, SETTINGS).watch(side.assembler))
    await side.start()
    try:
        await side.assembler.reserve(Reserve(transfer_id=TRANSFER, writer_instance_id=WRITER))
        yield side
    finally:
        watching.cancel()
        await side.stop()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(SETTINGS.heartbeat_interval_s)


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


async def test_a_silent_writer_that_is_still_listed_is_not_dead(workers: FakeEncodeWorkers) -> None:
    workers.answers = False
    writers = Writers(workers, SETTINGS)
    assert [await writers.close_transfer(WRITER, TRANSFER) for _ in range(5)] == [False] * 5


async def test_a_writer_is_dead_when_it_is_silent_and_gone(workers: FakeEncodeWorkers) -> None:
    workers.answers = workers.listed = False
    writers = Writers(workers, SETTINGS)
    assert not await writers.close_transfer(WRITER, TRANSFER), "one failure may be an accident"
    assert await writers.close_transfer(WRITER, TRANSFER)


@pytest.mark.parametrize("listed", [True, False], ids=["still-listed", "gone-or-made-up"])
async def test_a_silent_writer_is_forgotten_once_its_blocks_are_home(
    workers: FakeEncodeWorkers, listed: bool
) -> None:
    """Workers come and go for months, and ids may be made up: what is kept for each must not add
    up, nor count against a writer that comes again.
    """
    side = ReceivingSide(2, 1)
    writers = Writers(workers, SETTINGS)
    watching = asyncio.ensure_future(writers.watch(side.assembler))
    await side.start()
    try:
        await side.assembler.reserve(Reserve(transfer_id=TRANSFER, writer_instance_id=WRITER))
        workers.answers, workers.listed = False, listed
        await _until(lambda: writers._failures[WRITER] >= SETTINGS.heartbeat_max_failures)
        await _until(lambda: not side.receiver.writing)
        side.writer_is_settled = True
        await _until(lambda: not writers._failures)
    finally:
        watching.cancel()
        await side.stop()
