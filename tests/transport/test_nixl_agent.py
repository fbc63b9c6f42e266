# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`transport/nixl_agent.py`: its thread outlives its callers."""

import asyncio
import threading
import time
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import ProtocolError, TransferFailed
from dynamo.sglang_mm_resume.transport import nixl_agent
from dynamo.sglang_mm_resume.transport.copies import DONE, Copy
from dynamo.sglang_mm_resume.transport.nixl_agent import PeerLost, Write
from tests.transport.pair import (
    DEADLINE_S,
    ReceivingSide,
    WritingSide,
    a_pair,
    hand_over,
    rows_of,
    same_bits,
)


def in_time() -> float:
    return time.monotonic() + DEADLINE_S


async def test_callers_that_are_cancelled_do_not_stop_the_thread() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        agent = writing.agent
        for _ in range(50):
            connecting = asyncio.ensure_future(agent.connect(receiving.welcome))
            writes = asyncio.ensure_future(
                agent.write(receiving.agent.name, Write([0], [0], b"", in_time()))
            )
            await asyncio.sleep(0)
            connecting.cancel()
            writes.cancel()
            await asyncio.gather(connecting, writes, return_exceptions=True)
        rows = rows_of(1, 20)
        got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)


async def test_a_write_that_comes_to_be_posted_too_late_is_not_posted() -> None:
    """R8: whatever it waited for after its chunk was chosen."""
    async with a_pair(2, 2, 2) as (receiving, writing):
        receiving.memory.tensor.fill_(1)
        writing.memory.tensor.fill_(2)
        late = writing.agent.write(receiving.agent.name, Write([0], [0], b"", time.monotonic()))
        with pytest.raises(TransferFailed, match="expired"):
            await asyncio.wait_for(late, DEADLINE_S)
        await writing.agent.write(receiving.agent.name, Write([1], [1], b"", in_time()))
        assert [float(block.max()) for block in receiving.memory.tensor] == [1, 2]
        assert writing.agent.is_connected(receiving.agent.name)


async def test_a_thread_that_does_not_end_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nixl_agent, "STOP_TIMEOUT_S", 0.05)
    may_go_on = threading.Event()

    def load() -> Copy:
        may_go_on.wait()
        return DONE

    async with a_pair(2, 2, 2) as (receiving, writing):
        stuck = Write([0], [0], b"", in_time(), load=load)
        writes = asyncio.ensure_future(writing.agent.write(receiving.agent.name, stuck))
        await asyncio.sleep(0)
        await writing.agent.stop()
        assert f"NIXL agent {writing.agent.name} does not end" in caplog.text
        may_go_on.set()
        monkeypatch.undo()
        await asyncio.wait_for(writes, DEADLINE_S)
        await writing.agent.stop()
        assert not writing.agent._thread.is_alive()


async def test_a_write_to_a_stranger_is_a_lost_peer() -> None:
    async with a_pair(2, 2, 2) as (_, writing):
        with pytest.raises(PeerLost, match="somebody is not connected"):
            await asyncio.wait_for(
                writing.agent.write("somebody", Write([0], [0], b"x", in_time())), DEADLINE_S
            )


async def test_a_write_outside_the_pool_fails_and_leaves_the_agent_usable() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        with pytest.raises(PeerLost, match="InvalidParam"):
            write = writing.agent.write(receiving.agent.name, Write([0], [2], b"x", in_time()))
            await asyncio.wait_for(write, DEADLINE_S)
        assert not writing.agent.is_connected(receiving.agent.name)
        await asyncio.wait_for(writing.agent.connect(receiving.welcome), DEADLINE_S)
        rows = rows_of(1, 20)
        got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
        assert same_bits(got, rows)


async def test_peers_with_other_blocks_are_refused() -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        layout = receiving.welcome.layout.model_copy(update={"width": 7})
        with pytest.raises(ProtocolError, match="equal size"):
            await writing.agent.connect(receiving.welcome.model_copy(update={"layout": layout}))


async def test_what_was_asked_before_a_stop_is_answered() -> None:
    receiving, writing = ReceivingSide(2, 2), WritingSide(2)
    await receiving.start()
    await writing.start()
    await writing.agent.connect(receiving.welcome)
    writes = [
        asyncio.ensure_future(
            writing.agent.write(receiving.agent.name, Write([0], [0], b"", in_time()))
        )
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    await writing.stop()
    await asyncio.wait_for(asyncio.gather(*writes), DEADLINE_S)
    await receiving.stop()


async def test_stopping_twice_or_without_a_start_is_fine() -> None:
    writing = WritingSide(2)
    await writing.agent.stop()
    await writing.start()
    await writing.stop()
    await writing.stop()


class StubbornHandle:
    """A NIXL transfer handle that does not let itself be released."""

    def __init__(self, handle: Any) -> None:
        self._real = handle
        self._handle = handle._handle

    def release(self) -> None:
        self._real.release()
        raise RuntimeError("cannot be released")


async def test_a_handle_that_cannot_be_released_does_not_lose_its_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_pair(2, 2, 2) as (receiving, writing):
        nixl = writing.agent._agent
        make = nixl.make_prepped_xfer
        monkeypatch.setattr(nixl, "make_prepped_xfer", lambda *a: StubbornHandle(make(*a)))
        write = writing.agent.write(receiving.agent.name, Write([0], [0], b"", in_time()))
        await asyncio.wait_for(write, DEADLINE_S)
        assert writing.agent.num_in_flight == 0
