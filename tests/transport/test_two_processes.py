# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Writer and receiver in two processes, and what remains when one of them is killed."""

import asyncio
import time

import pytest

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.transitions import Receiving
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
    WRITER,
    a_process,
    encode_of,
    fetch,
    hang_after_two_chunks,
    met,
    receive_for_parent,
    reserved,
    write_for_parent,
)


async def test_embeddings_of_any_length_arrive_from_another_process() -> None:
    side = ReceivingSide(num_blocks=6, default_blocks=2, wait_timeout_s=3 * DEADLINE_S)
    await side.start()
    with a_process(write_for_parent, 5) as (_, pipe):
        async with asyncio.timeout(3 * DEADLINE_S):
            await met(side, pipe)
            for num_tokens in (1, 2 * BLOCK_SIZE, 5 * BLOCK_SIZE + 1, 40 * BLOCK_SIZE + 3):
                got = await fetch(side, pipe, num_tokens, num_tokens)
                assert same_bits(got, rows_of(num_tokens, num_tokens))
                assert side.pool.stats().free == side.pool.num_blocks
        assert side.receiver.live == {}
        assert not side.receiver.oddities
    await side.stop()


async def test_blocks_of_a_killed_writer_stay_away_until_its_death_is_certain() -> None:
    """R6"""
    side = ReceivingSide(4, 4, chunk_blocks=1, wait_timeout_s=3 * DEADLINE_S)
    await side.start()
    with a_process(write_for_parent, 4, hang_after_two_chunks) as (writer, pipe):
        async with asyncio.timeout(3 * DEADLINE_S):
            await met(side, pipe)
            granted = await reserved(side)
            transfer_id = granted.grant.transfer_id
            pipe.send(encode_of(1, 4 * BLOCK_SIZE, granted))
            token_bytes = side.memory.layout.token_bytes
            while side.assembler.totals.bytes_assembled < 2 * BLOCK_SIZE * token_bytes:
                await asyncio.sleep(0.005)
            writer.kill()
            await asyncio.get_running_loop().run_in_executor(None, writer.join, DEADLINE_S)
            taking = asyncio.ensure_future(side.assembler.take(transfer_id))
            await asyncio.sleep(0)
            side.assembler.drop(transfer_id, why="its writer is lost")
            with pytest.raises(TransferFailed, match="its writer is lost"):
                await taking
            while len(side.asked) < 3:
                await asyncio.sleep(0.005)
            assert side.asked[0] == (WRITER, transfer_id)
            assert side.receiver.live == {transfer_id: Receiving.QUARANTINED}
            assert side.pool.stats().quarantined == 4
            side.writer_is_settled = True
            while side.receiver.live:
                await asyncio.sleep(0.005)
    assert side.pool.stats().free == 4
    await side.stop()


async def test_a_killed_receiver_fails_the_send_quickly_and_leaves_nothing() -> None:
    side = WritingSide(4)
    await side.start()
    with a_process(receive_for_parent, 8, 4) as (receiver, pipe):
        async with asyncio.timeout(3 * DEADLINE_S):
            welcome = m.parse(m.PREFILL_REPLY, await pipe.receive())
            assert isinstance(welcome, m.Welcome)
            await side.agent.connect(welcome)
            pipe.send(m.Reserve(transfer_id=new_id(), writer_instance_id=WRITER))
            granted = m.parse(m.PREFILL_REPLY, await pipe.receive())
            assert isinstance(granted, m.Granted)
            grant = granted.grant
            outgoing = side.writer.open(grant, welcome.agent, welcome.num_blocks)
            sending = outgoing.send(rows_of(1, 8 * BLOCK_SIZE))
            assert (await anext(sending)).sent_tokens == 4 * BLOCK_SIZE
            receiver.kill()
            await asyncio.get_running_loop().run_in_executor(None, receiver.join, DEADLINE_S)
            more = {"generation": grant.generation + 1, "first_token": 4 * BLOCK_SIZE}
            side.writer.forward(grant.model_copy(update=more | {"blocks": (4, 5, 6, 7)}))
            started = time.monotonic()
            with pytest.raises(TransferFailed, match="RemoteDisconnect"):
                await anext(sending)
            assert time.monotonic() - started < 2.0
            await side.writer.close(grant.transfer_id)
    assert not side.agent.is_connected(welcome.agent)
    assert side.agent.num_in_flight == 0
    assert side.writer.live == {}
    assert side.pool.stats().free == side.pool.num_blocks
    await side.stop()
