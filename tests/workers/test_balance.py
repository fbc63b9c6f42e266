# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/balance.py`: who is chosen, who waits, and who is turned away."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.workers import balance
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding, NoneAlive

DEADLINE_S = 5.0


class Instances:
    """A Dynamo client that knows ids only, and which of them answer a probe."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)
        self.answering: set[int] = set()
        self.probed: list[int] = []

    async def direct(self, *_: Any, **__: Any) -> Iterator[Any]:
        raise NotImplementedError

    def instance_ids(self) -> list[int]:
        return self.ids


def of(instances: Instances, limit: int = 100, patience_s: float = DEADLINE_S) -> LeastOutstanding:
    async def probe(instance_id: int) -> bool:
        instances.probed.append(instance_id)
        return instance_id in instances.answering

    return LeastOutstanding(instances, "encode", limit, patience_s, probe)


async def next_of(workers: LeastOutstanding, without: set[int] | None = None) -> int:
    """The one that is chosen, given back at once."""
    async with workers.borrow(without=without or set()) as worker:
        return worker


async def test_idle_workers_take_turns() -> None:
    workers = of(Instances(3, 1, 2))
    assert Counter([await next_of(workers) for _ in range(6)]) == {1: 2, 2: 2, 3: 2}


async def test_the_one_with_least_to_do_is_next() -> None:
    workers = of(Instances(1, 2))
    async with workers.borrow() as first:
        for _ in range(3):
            assert await next_of(workers) != first


async def test_a_favourite_is_chosen_while_it_can_be() -> None:
    instances = Instances(1, 2)
    workers = of(instances, limit=2)
    async with workers.borrow(favourite=2) as first, workers.borrow(favourite=2) as second:
        assert (first, second) == (2, 2)
        async with workers.borrow(favourite=2) as third:
            assert third == 1, "the favourite has its fill"
    workers.avoid(2)
    async with workers.borrow(favourite=2) as chosen:
        assert chosen == 1, "the favourite has refused"
    instances.ids = [1]
    async with workers.borrow(favourite=2) as chosen:
        assert chosen == 1, "the favourite has left"


async def test_work_of_a_failed_request_is_not_counted_for_ever() -> None:
    workers = of(Instances(1, 2))
    for _ in range(5):
        with pytest.raises(RuntimeError):
            async with workers.borrow():
                raise RuntimeError
    assert workers.num_outstanding == 0


async def test_worker_that_left_is_not_chosen() -> None:
    instances = Instances(1, 2)
    workers = of(instances)
    instances.ids = [2]
    assert {await next_of(workers) for _ in range(3)} == {2}


async def test_no_worker_is_an_overload_naming_the_role() -> None:
    with pytest.raises(NoneAlive, match="no encode worker is alive") as caught:
        await next_of(of(Instances()))
    assert caught.value.reason is Reason.OVERLOADED


async def test_those_that_were_tried_are_not_chosen_again() -> None:
    workers = of(Instances(1, 2))
    assert {await next_of(workers, {1}) for _ in range(3)} == {2}
    assert workers.has_other({1})
    assert not workers.has_other({1, 2})
    with pytest.raises(NoneAlive):
        await next_of(workers, {1, 2})


async def test_a_worker_that_refused_is_passed_over_while_there_are_others() -> None:
    """It has nothing outstanding, and would win every choice."""
    workers = of(Instances(1, 2))
    workers.avoid(1)
    async with workers.borrow() as one, workers.borrow() as other:
        assert (one, other) == (2, 2)


async def test_the_only_worker_is_used_even_if_it_refused() -> None:
    workers = of(Instances(1))
    workers.avoid(1)
    assert await next_of(workers) == 1


async def test_what_is_beyond_the_limit_waits_in_order_of_arrival() -> None:
    workers = of(Instances(1, 2), limit=1)
    served: list[str] = []

    async def work(name: str) -> None:
        async with workers.borrow():
            served.append(name)

    async with AsyncExitStack() as busy:
        assert {await busy.enter_async_context(workers.borrow()) for _ in range(2)} == {1, 2}
        waiting = [asyncio.ensure_future(work(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert workers.num_outstanding == 5
        assert served == []
    await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_S)
    assert served == ["a", "b", "c"]
    assert workers.num_outstanding == 0


async def test_one_that_cannot_use_the_room_does_not_hold_up_those_behind_it() -> None:
    workers = of(Instances(1, 2), limit=1)
    async with workers.borrow(wanted=2), AsyncExitStack() as busy:
        await busy.enter_async_context(workers.borrow(wanted=1))
        picky = asyncio.ensure_future(next_of(workers, {1}))
        other = asyncio.ensure_future(next_of(workers))
        await asyncio.sleep(0)
        await busy.aclose()  # room at 1 only
        assert await asyncio.wait_for(other, DEADLINE_S) == 1
        assert not picky.done()
    assert await asyncio.wait_for(picky, DEADLINE_S) == 2


async def test_waiting_ends_with_a_refusal() -> None:
    workers = of(Instances(1), limit=1, patience_s=0.01)
    async with workers.borrow():
        with pytest.raises(Refused, match="1 pieces of work") as caught:
            await next_of(workers)
        assert workers.num_outstanding == 1
    assert caught.value.reason is Reason.OVERLOADED


@pytest.mark.parametrize("room_first", [False, True])
async def test_one_that_is_cancelled_as_it_waits_takes_no_room(room_first: bool) -> None:
    workers = of(Instances(1), limit=1)
    async with workers.borrow():
        waiting = asyncio.ensure_future(next_of(workers))
        await asyncio.sleep(0)
        if not room_first:
            waiting.cancel()
    waiting.cancel()  # in the very moment in which it was given the room
    await asyncio.gather(waiting, return_exceptions=True)
    assert workers.num_outstanding == 0
    assert await asyncio.wait_for(next_of(workers), DEADLINE_S) == 1


async def test_requests_are_turned_away_once_all_workers_have_their_fill() -> None:
    instances = Instances(1, 2)
    workers = of(instances, limit=1)
    workers.require_room()
    async with workers.borrow(), workers.borrow():
        with pytest.raises(Refused, match="try again later"):
            workers.require_room()
        instances.ids = [1, 2, 3]
        workers.require_room()


async def test_those_that_wait_hear_that_the_last_worker_has_gone() -> None:
    instances = Instances(1)
    workers = of(instances, limit=1)
    async with workers.borrow():
        waiting = asyncio.ensure_future(next_of(workers))
        await asyncio.sleep(0)
        instances.ids = []
    with pytest.raises(NoneAlive):
        await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_suspect_is_chosen_again_only_after_it_has_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "PROBE_INTERVAL_S", 0.001)
    instances = Instances(1, 2)
    workers = of(instances)
    workers.suspect(1)
    assert {await next_of(workers) for _ in range(4)} == {2}
    assert not workers.has_other({2})
    workers.suspect(2)
    with pytest.raises(NoneAlive):
        await next_of(workers)
    instances.answering = {1, 2}
    await _until(lambda: workers.has_other(()))
    await _until(lambda: workers.has_other({1}) and workers.has_other({2}))
    assert {await next_of(workers) for _ in range(4)} == {1, 2}


async def test_a_suspect_that_leaves_is_probed_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "PROBE_INTERVAL_S", 0.001)
    instances = Instances(1)
    workers = of(instances)
    workers.suspect(1)
    await _until(lambda: len(instances.probed) > 2)
    instances.ids = []
    await _until(lambda: not workers._background)
    instances.ids = [1]  # the same id again is another life
    assert await next_of(workers) == 1


async def test_a_worker_that_shuts_down_is_passed_over_until_it_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is listed for as long as it has work, and would be the one with the least of it."""
    monkeypatch.setattr(balance, "LOOK_INTERVAL_S", 0.001)
    instances = Instances(1, 2, 3)
    workers = of(instances)
    workers.drains(1)
    workers.drains(2)
    async with AsyncExitStack() as busy:
        chosen = [await busy.enter_async_context(workers.borrow(favourite=1)) for _ in range(9)]
    assert set(chosen) == {3}
    assert not workers.has_other({3})
    workers.drains(3)
    with pytest.raises(NoneAlive):
        await next_of(workers)
    instances.ids = [4]
    await _until(lambda: not workers._draining)
    instances.ids = [1, 4]  # the same id again is another life
    assert {await next_of(workers) for _ in range(4)} == {1, 4}
    await _until(lambda: not workers._background)


async def test_those_that_wait_are_served_by_a_worker_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing ends meanwhile: an autoscaler's new worker must not idle until something does."""
    monkeypatch.setattr(balance, "LOOK_INTERVAL_S", 0.001)
    instances = Instances(1)
    workers = of(instances, limit=1)
    async with workers.borrow():
        waiting = asyncio.ensure_future(next_of(workers))
        await asyncio.sleep(0)
        assert workers.num_waiting == 1
        instances.ids = [1, 2]
        assert await asyncio.wait_for(waiting, DEADLINE_S) == 2
    await _until(lambda: not workers._background)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)
