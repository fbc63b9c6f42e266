# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings between two real NIXL agents in one process (R1 to R4, R9, R16)."""

import asyncio
import time
from contextlib import aclosing

import pytest
import torch

from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.messages import Grant, Reserve
from dynamo.sglang_mm_resume.core.transitions import Receiving
from dynamo.sglang_mm_resume.transport.copies import Copy
from dynamo.sglang_mm_resume.transport.nixl_agent import PeerLost
from tests.transport.pair import (
    BLOCK_SIZE,
    DEADLINE_S,
    LAYOUT,
    ReceivingSide,
    a_pair,
    hand_over,
    new_id,
    nothing_stays,
    rows_of,
    same_bits,
)


@pytest.mark.parametrize(
    ("receiver_blocks", "writer_blocks", "default_blocks", "num_tokens"),
    [
        pytest.param(64, 64, 8, 1, id="one token"),
        pytest.param(64, 64, 8, 8 * BLOCK_SIZE - 3, id="below the default grant"),
        pytest.param(64, 64, 8, 8 * BLOCK_SIZE, id="the default grant exactly"),
        pytest.param(64, 64, 8, 8 * BLOCK_SIZE + 1, id="one token above"),
        pytest.param(64, 64, 8, 50 * BLOCK_SIZE, id="above half the pool"),
        pytest.param(64, 64, 8, 200 * BLOCK_SIZE + 5, id="above the whole pool"),
        pytest.param(1, 64, 8, 9 * BLOCK_SIZE + 1, id="the receiver has one block"),
        pytest.param(64, 1, 8, 9 * BLOCK_SIZE + 1, id="the writer has one block"),
        pytest.param(1, 1, 1, 9 * BLOCK_SIZE + 1, id="both have one block"),
        pytest.param(3, 5, 2, 40 * BLOCK_SIZE - 1, id="odd sizes"),
    ],
)
async def test_any_length_through_any_pool(
    receiver_blocks: int, writer_blocks: int, default_blocks: int, num_tokens: int
) -> None:
    async with a_pair(receiver_blocks, writer_blocks, default_blocks) as (receiving, writing):
        rows = rows_of(num_tokens, num_tokens)
        got, handshake = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)
        granted = min(default_blocks, receiver_blocks) * BLOCK_SIZE
        assert (handshake.rounds == 1) == (num_tokens <= granted)
        assert handshake.num_bytes == rows.numel() * rows.element_size()
        nothing_stays(receiving, writing)


@pytest.mark.parametrize(("receiver_blocks", "writer_blocks"), [(64, 64), (4, 4), (1, 1), (3, 16)])
async def test_many_at_once_share_a_pool(receiver_blocks: int, writer_blocks: int) -> None:
    lengths = [1, 5 * BLOCK_SIZE, 30 * BLOCK_SIZE + 7, 17, 12 * BLOCK_SIZE, 3]
    async with a_pair(receiver_blocks, writer_blocks, 2) as (receiving, writing):
        sent = [rows_of(seed, length) for seed, length in enumerate(lengths)]
        handed_over = asyncio.gather(*(hand_over(receiving, writing, rows) for rows in sent))
        results = await asyncio.wait_for(handed_over, DEADLINE_S)
        for rows, (got, _) in zip(sent, results, strict=True):
            assert same_bits(got, rows)
        nothing_stays(receiving, writing)
        assert receiving.assembler.totals.embeddings_assembled == len(lengths)


async def test_a_pool_that_is_used_again_carries_no_old_rows() -> None:
    async with a_pair(4, 4, 2) as (receiving, writing):
        for seed in range(20):
            rows = rows_of(seed, 6 * BLOCK_SIZE + seed)
            got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
            assert same_bits(got, rows)
        nothing_stays(receiving, writing)


async def test_a_cancelled_transfer_quarantines_until_its_writer_is_closed() -> None:
    """R6, R16"""
    async with a_pair(4, 4, 2, settle_interval_s=0.02) as (receiving, writing):
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        outgoing = writing.writer.open(grant, receiving.agent.name, receiving.pool.num_blocks)
        receiving.assembler.drop(message.transfer_id, why="the client left")
        assert receiving.pool.stats().quarantined == 2
        async with asyncio.timeout(DEADLINE_S):
            while len(receiving.asked) < 3:  # asked again and again
                await asyncio.sleep(0.005)
            assert receiving.pool.stats().quarantined == 2
            await writing.writer.close(message.transfer_id)
            receiving.writer_is_settled = True
            while receiving.receiver.live:
                await asyncio.sleep(0.005)
        with pytest.raises(ResumeError):
            await anext(outgoing.send(rows_of(0, 5)))
        assert receiving.pool.stats().free == 4


async def test_each_filled_grant_is_reported_with_its_own_bytes() -> None:
    """Also where chunks of the next grant are under way before its last one is written."""
    total = 4 * BLOCK_SIZE - 5
    async with a_pair(8, 8, 2, chunk_blocks=1) as (receiving, writing):
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        more = receiving.assembler.try_grant(message.transfer_id, total)
        assert more is not None
        outgoing = writing.writer.open(grant, receiving.agent.name, receiving.pool.num_blocks)
        outgoing.add_grant(more)
        sent = [found async for found in outgoing.send(rows_of(0, total))]
        assert [(found.sent_tokens, found.num_bytes) for found in sent] == [
            (2 * BLOCK_SIZE, 2 * BLOCK_SIZE * LAYOUT.token_bytes),
            (total, (total - 2 * BLOCK_SIZE) * LAYOUT.token_bytes),
        ]
        await writing.writer.close(message.transfer_id)


async def a_queue(receiving: ReceivingSide) -> tuple[str, str, "asyncio.Task[Grant]"]:
    """A transfer with all blocks, and another one with the call that waits for some."""
    first, second = new_id(), new_id()
    await receiving.assembler.reserve(Reserve(transfer_id=first, writer_instance_id=1))
    reserve = receiving.assembler.reserve(Reserve(transfer_id=second, writer_instance_id=1))
    waiting = asyncio.ensure_future(reserve)
    while second not in receiving.receiver.live:
        await asyncio.sleep(0)
    return first, second, waiting


async def test_a_reservation_that_nobody_waits_for_any_more_leaves_nothing() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        first, _, waiting = await a_queue(receiving)
        waiting.cancel()
        receiving.assembler.drop(first, writer_closed=True)  # would serve the second
        with pytest.raises(asyncio.CancelledError):
            await waiting
        nothing_stays(receiving, writing)


async def a_resume(receiving: ReceivingSide) -> tuple[Grant, "asyncio.Task[Grant]"]:
    """A transfer of 64 tokens that was granted half of them and waits for more."""
    message = Reserve(transfer_id=new_id(), writer_instance_id=1)
    grant = await receiving.assembler.reserve(message)
    resume = receiving.assembler.resume(message.transfer_id, grant.end_token, 64)
    waiting = asyncio.ensure_future(resume)
    while receiving.receiver.live[message.transfer_id] is not Receiving.RESUMING:
        await asyncio.sleep(0)
    return grant, waiting


async def test_a_writer_that_goes_on_after_its_resume_was_stopped_overwrites_nobody() -> None:
    """R6: the processor dies, its call is stopped, and the writer hears of it last."""
    async with a_pair(4, 4, 2) as (receiving, writing):
        grant, waiting = await a_resume(receiving)
        outgoing = writing.writer.open(grant, receiving.agent.name, receiving.pool.num_blocks)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        other = Reserve(transfer_id=new_id(), writer_instance_id=2)
        blocks = list((await receiving.assembler.reserve(other)).blocks)
        receiving.memory.tensor[blocks] = 7.0
        async with asyncio.timeout(DEADLINE_S), aclosing(outgoing.send(rows_of(0, 64))) as sending:
            await anext(sending)  # all that it was granted is written
        assert bool((receiving.memory.tensor[blocks] == 7.0).all())
        written = receiving.memory.tensor[list(grant.blocks)].flatten(0, 1)
        assert same_bits(written, rows_of(0, 64)[: len(written)])
        assert set(receiving.asked) == {(1, grant.transfer_id)}
        assert receiving.pool.stats().quarantined == 2
        await writing.writer.close(grant.transfer_id)


async def test_a_resume_that_is_stopped_as_its_transfer_ends_frees_nothing() -> None:
    async with a_pair(4, 4, 2) as (receiving, _):
        _, waiting = await a_resume(receiving)
        receiving.assembler.drop(next(iter(receiving.receiver.live)), why="its deadline passed")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert receiving.pool.stats().quarantined == 2


async def test_a_grant_is_not_passed_on_after_its_transfer_has_ended() -> None:
    """The end comes between the grant and the turn of whoever waits for it."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        first, second, waiting = await a_queue(receiving)
        receiving.assembler.drop(first, writer_closed=True)  # serves the second
        receiving.assembler.drop(second, writer_closed=True, why="it is over")
        with pytest.raises(TransferFailed, match="it is over"):
            await waiting
        nothing_stays(receiving, writing)


async def test_a_grant_that_was_made_but_missed_is_free() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        first, _, waiting = await a_queue(receiving)
        receiving.assembler.drop(first, writer_closed=True)  # serves the second
        waiting.cancel()  # before it comes to hear of it
        with pytest.raises(asyncio.CancelledError):
            await waiting
        nothing_stays(receiving, writing)


async def test_waiting_for_blocks_ends_in_a_refusal() -> None:
    """R14: a time-out, not a hang."""
    async with a_pair(2, 2, 2, wait_timeout_s=0.1) as (receiving, _):
        receiving.writer_is_settled = True
        first = Reserve(transfer_id=new_id(), writer_instance_id=1)
        await receiving.assembler.reserve(first)
        taken = asyncio.ensure_future(receiving.assembler.take(first.transfer_id))
        late = Reserve(transfer_id=new_id(), writer_instance_id=1)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises((Refused, TransferFailed)):
                await receiving.assembler.reserve(late)
                await receiving.assembler.take(late.transfer_id)
            with pytest.raises(TransferFailed, match="nothing arrived"):
                await taken


async def test_a_grant_for_a_transfer_that_is_being_closed_is_refused() -> None:
    """Whoever sent it may try again elsewhere: nobody has broken the protocol."""
    async with a_pair(4, 4, 2) as (receiving, writing):
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        outgoing = writing.writer.open(grant, receiving.agent.name, 4)
        more = grant.model_copy(
            update={"generation": grant.generation + 1, "first_token": grant.end_token}
        )
        closing = asyncio.ensure_future(writing.writer.close(message.transfer_id))
        async with asyncio.timeout(DEADLINE_S):
            await outgoing.closed.wait()
            assert message.transfer_id in writing.writer.live
            with pytest.raises(Refused) as refused:
                writing.writer.forward(more)
            assert refused.value.reason is Reason.UNKNOWN_TRANSFER
            await closing
        receiving.assembler.drop(message.transfer_id, writer_closed=True)
        nothing_stays(receiving, writing)


async def test_a_second_resume_does_not_disturb_the_first() -> None:
    """A repeated request is refused; the one that waits still gets its grant."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        rows = rows_of(1, 3 * BLOCK_SIZE)
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        outgoing = writing.writer.open(grant, receiving.agent.name, 2)
        async with asyncio.timeout(DEADLINE_S):
            sending = outgoing.send(rows)
            sent = await anext(sending)
            blocker = Reserve(transfer_id=new_id(), writer_instance_id=1)
            blocking = asyncio.ensure_future(receiving.assembler.reserve(blocker))
            await asyncio.wait_for(blocking, DEADLINE_S)
            resume = (message.transfer_id, sent.sent_tokens, len(rows))
            first = asyncio.ensure_future(receiving.assembler.resume(*resume))
            await asyncio.sleep(0)
            with pytest.raises(Exception, match=r"RESUME|grants cover"):
                await receiving.assembler.resume(*resume)
            receiving.assembler.drop(blocker.transfer_id, writer_closed=True)
            writing.writer.forward(await first)
            async for _ in sending:
                pass
            assert same_bits(await receiving.assembler.take(message.transfer_id), rows)
        await writing.writer.close(message.transfer_id)
        receiving.assembler.drop(message.transfer_id)
        nothing_stays(receiving, writing)


async def test_a_writer_that_was_told_to_close_does_not_open_later() -> None:
    """R6: a grant may reach the writer after the receiver was told that it is closed."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        await writing.writer.close(message.transfer_id)
        receiving.assembler.drop(message.transfer_id, writer_closed=True)
        with pytest.raises(Refused) as refused:
            writing.writer.open(grant, receiving.agent.name, 2)
        assert refused.value.reason is Reason.DUPLICATE
        nothing_stays(receiving, writing)


async def test_rows_keep_every_bit() -> None:
    """R11: no cast; not-a-number, infinities and signed zeros included."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        bits = torch.arange(2 * BLOCK_SIZE * 96, dtype=torch.int32) * 21
        rows = bits.to(torch.int16).view(torch.bfloat16).view(2 * BLOCK_SIZE, 96)
        got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)


async def test_a_copy_that_fails_is_heard_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the time-out of a chunk that never comes."""

    def out_of_memory(blocks: object, rows: object) -> None:
        raise MemoryError

    async with a_pair(2, 2, 2, wait_timeout_s=600.0) as (receiving, writing):
        receiving.writer_is_settled = True
        monkeypatch.setattr(receiving.memory, "gather", out_of_memory)
        with pytest.raises(TransferFailed, match="could not be assembled"):
            await asyncio.wait_for(hand_over(receiving, writing, rows_of(1, 20)), DEADLINE_S)


async def test_a_failed_write_drains_although_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R6: its bytes may still lie in the receiver's socket when `close` would be confirmed."""
    posted, peer_dies = asyncio.Event(), asyncio.Event()

    async def never_arrives(*_: object) -> None:
        posted.set()
        await peer_dies.wait()
        raise PeerLost("gone")

    async with a_pair(2, 2, 2) as (receiving, writing):
        monkeypatch.setattr(writing.agent, "write", never_arrives)
        giving_up = asyncio.ensure_future(hand_over(receiving, writing, rows_of(1, 20)))
        await asyncio.wait_for(posted.wait(), DEADLINE_S)
        (transfer_id,) = writing.writer.live
        giving_up.cancel()
        await asyncio.gather(giving_up, return_exceptions=True)
        peer_dies.set()
        started = time.monotonic()
        await asyncio.wait_for(writing.writer.close(transfer_id), DEADLINE_S)
        assert time.monotonic() - started >= writing.writer.drain_s
        assert writing.pool.stats().free == 2


async def test_a_transfer_does_not_wait_for_ever_for_a_grant() -> None:
    """A processor that hangs neither brings one nor breaks off."""
    async with a_pair(2, 2, 1, wait_timeout_s=1.0) as (receiving, writing):
        receiving.writer_is_settled = True
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        outgoing = writing.writer.open(grant, receiving.agent.name, 2)
        sending = outgoing.send(rows_of(1, 3 * BLOCK_SIZE))
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(sending)).sent_tokens == BLOCK_SIZE
            with pytest.raises(TransferFailed, match="no further grant"):
                await anext(sending)
            await writing.writer.close(message.transfer_id)
            while receiving.receiver.live:
                await asyncio.sleep(0.005)
        nothing_stays(receiving, writing)


async def test_a_worker_is_drained_once_no_embedding_is_on_its_way() -> None:
    async with a_pair(64, 64, 8) as (receiving, writing):
        assembler = receiving.assembler
        await asyncio.wait_for(assembler.drained(), DEADLINE_S)  # nothing is
        given_up = new_id()
        await assembler.reserve(Reserve(transfer_id=given_up, writer_instance_id=1))
        rows = rows_of(1, 3 * BLOCK_SIZE)
        drained = asyncio.ensure_future(assembler.drained())
        await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert not drained.done()
        assembler.drop(given_up, writer_closed=True)
        await asyncio.wait_for(drained, DEADLINE_S)
        nothing_stays(receiving, writing)


async def test_a_receiver_that_has_left_is_forgotten() -> None:
    async with a_pair(8, 8, 2) as (receiving, writing):
        await asyncio.wait_for(hand_over(receiving, writing, rows_of(1, 9)), DEADLINE_S)
        assert writing.agent.is_connected(receiving.agent.name)
        await asyncio.wait_for(writing.agent.disconnect(receiving.agent.name), DEADLINE_S)
        assert not writing.agent.is_connected(receiving.agent.name)
        await writing.agent.disconnect("nobody")
        assert not writing.writer._turns


async def test_checksums_match_in_any_pieces() -> None:
    """Chunks that end within a block, and a writer that stages a chunk in pieces."""
    async with a_pair(8, 3, 2) as (receiving, writing):
        receiving.assembler.checksum = writing.writer.checksum = True
        rows = rows_of(1, 9 * BLOCK_SIZE + 5).nan_to_num(0.0, 0.0, 0.0)
        got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)
        nothing_stays(receiving, writing)


@pytest.mark.parametrize("writer_sends_one", [True, False])
@pytest.mark.parametrize("element", [float("nan"), float("inf"), float("-inf")])
async def test_rows_that_are_not_finite_are_corrupt(element: float, writer_sends_one: bool) -> None:
    """Whether or not the writer has a checksum to go with them."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        receiving.writer_is_settled = receiving.assembler.checksum = True
        writing.writer.checksum = writer_sends_one
        rows = torch.ones(20, LAYOUT.width, dtype=torch.bfloat16)
        rows[17, 5] = element
        with pytest.raises(Refused, match="not finite") as refused:
            await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert refused.value.reason is Reason.CORRUPT
        assert receiving.assembler.totals.reasons == {"corrupt": 1}


async def test_a_byte_that_changes_on_the_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks stay away until the writer confirms (R6)."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        receiving.assembler.checksum = writing.writer.checksum = True
        scatter = writing.memory.scatter

        def disturbed(rows: torch.Tensor, blocks: tuple[int, ...]) -> Copy:
            copy = scatter(rows, blocks)
            writing.memory.tensor[blocks[0], 3, 7] = 2.0
            return copy

        monkeypatch.setattr(writing.memory, "scatter", disturbed)
        rows = torch.ones(20, LAYOUT.width, dtype=torch.bfloat16)
        with pytest.raises(Refused, match="not those that were sent") as refused:
            await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert refused.value.reason is Reason.CORRUPT
        assert receiving.pool.stats().quarantined == 2
        receiving.writer_is_settled = True
        async with asyncio.timeout(DEADLINE_S):
            while receiving.receiver.live:
                await asyncio.sleep(0.005)
        assert receiving.pool.stats().free == 2


async def test_without_the_option_a_checksum_means_nothing() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        writing.writer.checksum = True
        rows = torch.full((20, LAYOUT.width), float("nan"), dtype=torch.bfloat16)
        got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)
        nothing_stays(receiving, writing)


async def test_a_grant_in_blocks_of_another_size_is_refused() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        message = Reserve(transfer_id=new_id(), writer_instance_id=1)
        grant = await receiving.assembler.reserve(message)
        other = grant.model_copy(update={"block_size": 2 * BLOCK_SIZE})
        with pytest.raises(ProtocolError, match="blocks of 32 tokens"):
            writing.writer.open(other, receiving.agent.name, 2)
        receiving.assembler.drop(message.transfer_id, writer_closed=True)
        nothing_stays(receiving, writing)
