# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/team.py`, `sides.py` and `channel.py`: real processes that hand something over."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from benchmarks.channel import Channel, Failed, Hung
from benchmarks.contenders import TRACED, Contender
from benchmarks.contenders.traced import STEPS
from benchmarks.team import Team
from benchmarks.workload import Order, Setup

HERE = "tests.support.bench_contenders"
SETUP = Setup(tokens=16, hidden=8, in_flight=2, writers=2)


def team_of(receiver: str, num_writers: int = 1) -> AbstractAsyncContextManager[Team]:
    contender = Contender("message", f"{HERE}:MessageWriter", f"{HERE}:{receiver}")
    return a_team(contender, num_writers)


@asynccontextmanager
async def a_team(contender: Contender, num_writers: int = 1) -> AsyncIterator[Team]:
    team = Team(contender, num_writers)
    team.spawn()
    try:
        await team.open()
        await team.start(SETUP)
        yield team
    finally:
        await team.stop()


async def test_hand_offs_one_by_one_and_at_once_each_with_bytes_of_its_own() -> None:
    async with team_of("MessageReceiver", num_writers=2) as team:
        one = await team.hand_off(Order(tokens=10, verify=True))
        assert 0 < one.seconds["message"] < 10
        burst = await team.burst(tokens=16, in_flight=4, verify=True)
        assert [[one.key for one in each] for each in burst.done] == [
            ["0-0", "0-1"],
            ["1-0", "1-1"],
        ]
        hand_offs = [one for each in burst.done for one in each]
        assert all(one.ended > burst.at for one in hand_offs)
        assert len({tuple(one.details["content"]) for one in hand_offs}) == 4
        team.pause()
        team.resume()
        await team.release()
        await team.start(Setup(tokens=4, hidden=16))
        await team.hand_off(Order(tokens=4, verify=True))


async def test_the_steps_of_our_own_hand_off_are_traced() -> None:
    """Between two processes, with NIXL: the suite `stages` has nothing else."""
    async with a_team(TRACED) as team:
        done = await team.hand_off(Order(tokens=10, verify=True))
        assert list(done.details) == list(STEPS)
        for began, ended, busy in done.details.values():
            assert began <= ended and busy >= 0


async def test_one_wrong_bit_is_noticed() -> None:
    async with team_of("CorruptingReceiver") as team:
        await team.hand_off(Order(tokens=10))
        with pytest.raises(Failed, match="arrived changed"):
            await team.hand_off(Order(tokens=10, verify=True))


async def test_a_side_that_dies_is_a_failure_with_its_exit_code() -> None:
    async with team_of("DyingReceiver") as team:
        with pytest.raises(Failed, match=r"the process has ended \(exit code 3\)"):
            await team.hand_off(Order(tokens=10))
        with pytest.raises(Failed, match="exit code 3"):
            await team.touch()


@asynccontextmanager
async def channels(answer: Any) -> AsyncIterator[Channel]:
    ours, theirs = socket.socketpair()
    asking, answering = Channel(answer), Channel(answer)
    await asking.open(ours)
    await answering.open(theirs)
    yield asking
    asking.close()
    answering.close()
    await asking.ended()
    await answering.ended()


async def test_answers_come_in_any_order() -> None:
    gate = asyncio.Event()

    async def answer(op: str, body: Any) -> Any:
        if op == "slow":
            await gate.wait()
        else:
            gate.set()
        return body

    async with channels(answer) as channel:
        slow = asyncio.ensure_future(channel.ask("slow", 1))
        assert await channel.ask("fast", 2) == 2
        assert await slow == 1


async def test_an_error_in_a_group_is_told_by_itself() -> None:
    async def answer(op: str, body: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    async def fail() -> None:
        raise ValueError("too long")

    async with channels(answer) as channel:
        with pytest.raises(Failed, match=r"^ValueError: too long$"):
            await channel.ask("anything")


async def test_no_answer_in_time() -> None:
    async def answer(op: str, body: Any) -> Any:
        await asyncio.Event().wait()

    async with channels(answer) as channel:
        with pytest.raises(Hung):
            await channel.ask("anything", deadline_s=0.01)
