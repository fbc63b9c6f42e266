# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A writer that stands still for longer than every time-out, then goes on: its late write may land
in quarantined blocks, and nowhere else (R6, R8). And the reverse: a receiver that stands still.
"""

import asyncio
import os
import signal
import time
from contextlib import nullcontext

import pytest
import torch

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.receiver import Oddity
from dynamo.sglang_mm_resume.core.transitions import Receiving
from dynamo.sglang_mm_resume.transport import writer as writer_module
from tests.transport.pair import (
    BLOCK_SIZE,
    DEADLINE_S,
    ReceivingSide,
    WritingSide,
    new_id,
    rows_of,
    same_bits,
)
from tests.transport.processes import (
    CHUNK_BLOCKS,
    GRANTED,
    NUM_BLOCKS,
    WIDE,
    WRITER,
    Disturb,
    Pipe,
    a_process,
    a_receiver,
    confirmed,
    encode_of,
    fetch,
    is_stopped,
    met,
    not_polling,
    receive_for_parent,
    reserved,
    stop_after_the_check,
    stop_between_posts,
    stop_when_posted,
    two_writers,
    until,
)

#: Long enough for a writer to begin, short enough to wait for.
TIMEOUT_S = 5.0
#: No embedding has a row of these.
CANARY = 0x5A5A
LATE_S = 1.0


def bits(side: ReceivingSide) -> torch.Tensor:
    """The pool's memory, `(num_blocks, elements)`."""
    return side.memory.tensor.view(torch.int16).flatten(1)


def changed(side: ReceivingSide, before: torch.Tensor) -> set[int]:
    """Blocks that are not what they were."""
    return set((bits(side) != before).any(dim=1).nonzero().flatten().tolist())


async def heard(pipe: Pipe) -> m.Refusal:
    """What the writer says in the end of a transfer that it could not finish."""
    while not isinstance(event := m.parse(m.ENCODE_EVENT, await pipe.receive()), m.Refusal):
        pass
    return event


@pytest.mark.parametrize(
    ("disturb", "through_sockets", "lands_late", "notices"),
    [
        # Its clock tells it that the grant has expired: it posts nothing.
        pytest.param(stop_between_posts, False, False, 0, id="between-two-posts"),
        # What cannot be prevented: the check was right when it was made.
        pytest.param(stop_after_the_check, False, True, 1, id="after-the-check"),
        # Through a socket the bytes go on when the writer does.
        pytest.param(stop_when_posted, True, True, 1, id="while-posted"),
    ],
)
async def test_a_stopped_writer_writes_late_into_quarantined_blocks_only(
    disturb: Disturb, through_sockets: bool, lands_late: bool, notices: int
) -> None:
    receiver = ReceivingSide(
        NUM_BLOCKS, GRANTED, WIDE, wait_timeout_s=TIMEOUT_S, chunk_blocks=CHUNK_BLOCKS
    )
    with two_writers(disturb, through_sockets) as (process, pipe, healthy):
        async with a_receiver(receiver) as side:
            await met(side, pipe)
            await met(side, healthy)
            await fetch(side, pipe, 0, BLOCK_SIZE)
            granted = await reserved(side)
            transfer_id, its_blocks = granted.grant.transfer_id, set(granted.grant.blocks)
            others = set(range(NUM_BLOCKS)) - its_blocks
            with not_polling(side) if through_sockets else nullcontext():
                pipe.send(encode_of(1, GRANTED * BLOCK_SIZE, granted))
                await until(lambda: is_stopped(process))
            with pytest.raises(TransferFailed, match="nothing arrived"):
                await side.assembler.take(transfer_id)
            assert side.receiver.live == {transfer_id: Receiving.QUARANTINED}

            # Meanwhile every other block is used, again and again.
            bits(side)[sorted(others)] = CANARY
            canaries = bits(side).clone()
            for seed in range(2, 5):
                length = (len(others) + seed) * BLOCK_SIZE + seed
                got = await fetch(side, healthy, seed, length)
                assert same_bits(got, rows_of(seed, length, WIDE))
            assert changed(side, canaries) >= others
            assert side.pool.stats().quarantined == len(its_blocks)
            assert side.pool.stats().free == len(others)

            bits(side)[sorted(others)] = CANARY
            before = bits(side).clone()
            os.kill(process.pid, signal.SIGCONT)
            assert "expired" in (await heard(pipe)).message
            pipe.send(m.Close(transfer_id=transfer_id))
            await confirmed(pipe)
            await until(lambda: side.receiver.oddities[Oddity.LATE] == notices)
            late = changed(side, before)
            assert late <= its_blocks, "memory of others was overwritten"
            assert bool(late) == lands_late
            assert side.receiver.live == {transfer_id: Receiving.QUARANTINED}
            assert side.receiver.oddities.total() == notices, "the late notice is all that is odd"

            side.writer_is_settled = True  # what it has just confirmed
            await until(lambda: side.pool.stats().free == NUM_BLOCKS)
            for writer in (pipe, healthy):
                got = await fetch(side, writer, 8, 2 * NUM_BLOCKS * BLOCK_SIZE)
                assert same_bits(got, rows_of(8, 2 * NUM_BLOCKS * BLOCK_SIZE, WIDE))
            assert side.receiver.live == {}


async def test_a_stopped_receiver_stops_no_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A post to it stays in progress; loop, processor and shutdown of the writer do not mind."""
    monkeypatch.setattr(writer_module, "CLOSE_TIMEOUT_S", 0.2)
    side = WritingSide(8)
    await side.start()
    with a_process(receive_for_parent, 8, 8) as (receiver, pipe):
        async with asyncio.timeout(3 * DEADLINE_S):
            welcome = m.parse(m.PREFILL_REPLY, await pipe.receive())
            assert isinstance(welcome, m.Welcome)
            await side.agent.connect(welcome)
            first = await _written(side, pipe, welcome)
            second = await _granted(pipe)
            os.kill(receiver.pid, signal.SIGSTOP)
            await until(lambda: is_stopped(receiver))
            outgoing = side.writer.open(second.grant, welcome.agent, welcome.num_blocks)
            sending = asyncio.ensure_future(anext(outgoing.send(rows_of(2, 8 * BLOCK_SIZE))))
            await until(lambda: side.agent.num_in_flight == 1)

            cpu_s, longest_gap_s = await _busyness(LATE_S)
            print(f"{cpu_s:.2f} s of CPU in {LATE_S} s, the loop missed {longest_gap_s:.3f} s")
            assert not sending.done()
            assert cpu_s < 0.6 * LATE_S, "it spins"
            assert longest_gap_s < 0.8 * LATE_S, "the event loop is blocked"
            closing_at = time.monotonic()
            await side.writer.close_all()
            assert time.monotonic() - closing_at < 1.0
            held = side.pool.stats().held
            assert held == side.writer.reserve_blocks, "the write may still read them"
            closing = asyncio.ensure_future(side.writer.close(second.grant.transfer_id))
            await asyncio.wait({closing}, timeout=0.2)
            assert not closing.done(), "confirmed, with a write in flight"

            os.kill(receiver.pid, signal.SIGCONT)
            await asyncio.wait_for(closing, DEADLINE_S)
            await asyncio.gather(sending, return_exceptions=True)
            assert side.writer.live == {}
            assert side.pool.stats().free == side.pool.num_blocks
            for granted in (first, second):
                await _aborted(pipe, granted)
            third = await _written(side, pipe, welcome)  # which needs every block over there
            await _aborted(pipe, third)
    await side.agent.stop()


async def _granted(pipe: Pipe) -> m.Granted:
    pipe.send(m.Reserve(transfer_id=new_id(), writer_instance_id=WRITER))
    granted = m.parse(m.PREFILL_REPLY, await pipe.receive())
    assert isinstance(granted, m.Granted)
    return granted


async def _written(side: WritingSide, pipe: Pipe, welcome: m.Welcome) -> m.Granted:
    granted = await _granted(pipe)
    outgoing = side.writer.open(granted.grant, welcome.agent, welcome.num_blocks)
    async for _ in outgoing.send(rows_of(1, 8 * BLOCK_SIZE)):
        pass
    await side.writer.close(granted.grant.transfer_id)
    return granted


async def _aborted(pipe: Pipe, granted: m.Granted) -> None:
    pipe.send(m.Abort(transfer_id=granted.grant.transfer_id, writer_closed=True))
    assert m.parse(m.PREFILL_REPLY, await pipe.receive()) == m.Done()


async def _busyness(seconds: float) -> tuple[float, float]:
    """CPU seconds of this process, and the longest time that its loop did not come around."""
    cpu_at, now = time.process_time(), time.monotonic()
    end, longest_gap_s = now + seconds, 0.0
    while now < end:
        await asyncio.sleep(0.005)
        before, now = now, time.monotonic()
        longest_gap_s = max(longest_gap_s, now - before)
    return time.process_time() - cpu_at, longest_gap_s
