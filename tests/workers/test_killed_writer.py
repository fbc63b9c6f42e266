# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""An encode worker that is killed in a write: when its blocks return (R6)."""

import asyncio
import time
from typing import Any

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.workers.prefill import Writers
from tests.transport.pair import BLOCK_SIZE, DEADLINE_S, ReceivingSide, rows_of, same_bits
from tests.transport.processes import (
    CHUNK_BLOCKS,
    GRANTED,
    NUM_BLOCKS,
    WIDE,
    WRITER,
    a_receiver,
    encode_of,
    fetch,
    is_stopped,
    met,
    not_polling,
    reserved,
    stop_when_posted,
    two_writers,
    until,
)


class Lease:
    """The client of a writer that answers nothing any more, listed until its lease ends."""

    def __init__(self) -> None:
        self.listed = True

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> Any:
        raise Exception("Unavailable: connection refused")

    def instance_ids(self) -> list[int]:
        return [WRITER] if self.listed else []


class WatchingSide(ReceivingSide):
    """Asks as a prefill worker does."""

    def __init__(self, writers: Writers, *arguments: Any, **limits: Any) -> None:
        super().__init__(*arguments, **limits)
        self.writers = writers

    async def _ask_writer(self, writer: int, transfer_id: str) -> bool:
        self.asked.append((writer, transfer_id))
        return await self.writers.close_transfer(writer, transfer_id)


async def test_a_writer_killed_in_a_write_returns_its_blocks_when_dead_and_drained() -> None:
    settings = Settings(heartbeat_interval_s=0.05, heartbeat_max_failures=2, drain_s=0.4)
    lease = Lease()
    receiver = WatchingSide(
        Writers(lease, settings),
        *(NUM_BLOCKS, GRANTED, WIDE),
        wait_timeout_s=3 * DEADLINE_S,
        chunk_blocks=CHUNK_BLOCKS,
    )
    with two_writers(stop_when_posted, through_sockets=True) as (process, pipe, healthy):
        async with a_receiver(receiver) as side:
            await met(side, pipe)
            await met(side, healthy)
            await fetch(side, pipe, 0, BLOCK_SIZE)
            granted = await reserved(side)
            transfer_id = granted.grant.transfer_id
            with not_polling(side):
                pipe.send(encode_of(1, GRANTED * BLOCK_SIZE, granted))
                await until(lambda: is_stopped(process))
            process.kill()
            side.assembler.drop(transfer_id, why="its writer is lost")
            watching = asyncio.ensure_future(receiver.writers.watch(side.assembler))
            await until(lambda: receiver.writers.probes.failed >= settings.heartbeat_max_failures)
            watching.cancel()
            asked = len(side.asked)
            await until(lambda: len(side.asked) > asked + 1)
            assert side.pool.stats().quarantined == GRANTED, "silent, but its lease lives"
            got = await fetch(side, healthy, 2, 3 * NUM_BLOCKS * BLOCK_SIZE)
            assert same_bits(got, rows_of(2, 3 * NUM_BLOCKS * BLOCK_SIZE, WIDE))
            assert side.pool.stats().quarantined == GRANTED
            lease.listed = False
            gone_at = time.monotonic()
            await until(lambda: side.pool.stats().free == NUM_BLOCKS)
            assert time.monotonic() - gone_at >= settings.drain_s
            assert side.receiver.live == {}
