# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/batches.py`: what goes through the tower together, and what becomes of the others."""

import asyncio

import pytest

from dynamo.sglang_mm_resume.workers.batches import Batches


class Tower:
    """Upper-cases words, when it is let; a word with a `!` breaks its batch."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.batches: list[list[str]] = []

    async def work(self, words: list[str]) -> list[str]:
        self.batches.append(words)
        await self.let.wait()
        if any("!" in word for word in words):
            raise RuntimeError(f"cannot do {words}")
        return [word.upper() for word in words]


def asked(batches: "Batches[str, str]", *words: str) -> list["asyncio.Task[str]"]:
    return [asyncio.ensure_future(batches.result_of(word, len(word))) for word in words]


async def begun(tower: Tower) -> None:
    async with asyncio.timeout(5):
        while not tower.batches:
            await asyncio.sleep(0)


async def test_what_comes_meanwhile_goes_together() -> None:
    tower = Tower()
    batches = Batches(tower.work, max_items=3, max_size=100)
    first = asked(batches, "a")
    await begun(tower)
    rest = asked(batches, "b", "c", "d", "e")
    tower.let.set()
    assert await asyncio.gather(*first, *rest) == ["A", "B", "C", "D", "E"]
    assert tower.batches == [["a"], ["b", "c", "d"], ["e"]]
    assert (batches.sizes.count, batches.sizes.sum) == (3, 5)


async def test_a_batch_is_no_larger_than_allowed_unless_one_alone_is() -> None:
    tower = Tower()
    batches = Batches(tower.work, max_items=9, max_size=5)
    tasks = asked(batches, "longer than that", "ab", "cd", "ef")
    tower.let.set()
    await asyncio.gather(*tasks)
    assert tower.batches == [["longer than that"], ["ab", "cd"], ["ef"]]


async def test_who_does_not_wait_any_more_is_left_out() -> None:
    tower = Tower()
    batches = Batches(tower.work, max_items=9, max_size=100)
    first = asked(batches, "a")
    await begun(tower)
    rest = asked(batches, "b", "c", "d")
    await asyncio.sleep(0)
    rest[1].cancel()
    await asyncio.gather(rest[1], return_exceptions=True)
    tower.let.set()
    await asyncio.gather(*first, rest[0], rest[2])
    assert tower.batches == [["a"], ["b", "d"]]


async def test_one_that_breaks_its_batch_fails_alone() -> None:
    tower = Tower()
    batches = Batches(tower.work, max_items=9, max_size=100)
    tower.let.set()
    good, bad, other = await asyncio.gather(*asked(batches, "a", "b!", "c"), return_exceptions=True)
    assert (good, other) == ("A", "C")
    assert isinstance(bad, RuntimeError)
    assert await batches.result_of("later", 1) == "LATER"


async def test_who_waits_for_work_that_is_cancelled_is_told() -> None:
    async def cancelled(words: list[str]) -> list[str]:
        raise asyncio.CancelledError

    batches = Batches(cancelled, max_items=9, max_size=100)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(batches.result_of("a", 1), 5)
