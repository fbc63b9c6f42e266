# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/encodings.py`: equal pictures share the work, and nobody pays for another's end."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Sized
from dynamo.sglang_mm_resume.workers.encodings import MAX_PREPARED, Encodings
from dynamo.sglang_mm_resume.workers.media import Content
from dynamo.sglang_mm_resume.workers.sglang_encoder import Prepared

DEADLINE_S = 5.0
TOKENS = 3


class Tower:
    """Stands in for the vision tower and for the decoder: both go on when they are let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.started = 0
        self.cancelled = 0
        self.decoded: list[bytes] = []
        self.error: Exception | None = None

    async def decode(self, content: Content) -> bytes:
        self.decoded.append(content.data)
        return content.data

    async def prepare(self, image: bytes) -> Prepared:
        return Prepared(TOKENS, (1, 2, 6), image)

    async def encode(self, prepared: Prepared) -> torch.Tensor:
        self.started += 1
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return torch.full((TOKENS, 2), float(prepared.context[0]))


class Kept:
    """An embedding in a pool."""

    def __init__(self, sized: Sized) -> None:
        self.sized = sized
        self.pins = 1

    def unpin(self) -> None:
        self.pins -= 1


class Pool:
    """Stands in for the writer: has room, or has not."""

    def __init__(self) -> None:
        self.has_room = True
        self.kept: dict[str, Kept] = {}

    def find(self, key: str) -> Kept | None:
        found = self.kept.get(key)
        if found is not None:
            found.pins += 1
        return found

    def store(self, key: str, sized: Sized, rows: torch.Tensor) -> Kept | None:
        if self.has_room:
            self.kept[key] = Kept(sized)
        return self.kept.get(key)


@pytest.fixture
async def tower() -> Tower:
    return Tower()


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def encodings(tower: Tower, pool: Pool) -> Encodings:
    parts: Any = (tower, tower, pool)
    return Encodings(*parts)


def content(name: str) -> Content:
    return Content(name.encode(), name.encode().hex().ljust(64, "0"))


async def rows_of(encodings: Encodings, name: str) -> Any:
    with encodings.of(content(name)) as encoding:
        await encoding.sized()
        return await encoding.rows()


async def seen(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


async def test_the_size_is_known_before_the_tower_runs(encodings: Encodings, tower: Tower) -> None:
    with encodings.of(content("a")) as encoding:
        sized = await encoding.sized()
        assert (sized.total_tokens, sized.grid) == (TOKENS, (1, 2, 6))
        assert sized.content_hash == content("a").content_hash
        assert tower.started == 0


async def test_equal_pictures_share_one_run(encodings: Encodings, tower: Tower, pool: Pool) -> None:
    tasks = [asyncio.ensure_future(rows_of(encodings, name)) for name in "aaab"]
    await seen(lambda: tower.started == 2)
    tower.let.set()
    *same, other = await asyncio.gather(*tasks)
    assert len({id(rows) for rows in same}) == 1 and other is not same[0]
    assert tower.decoded == [b"a", b"b"]
    assert (encodings.totals.encodes, encodings.totals.encodes_shared) == (2, 2)
    assert all(kept.pins == 0 for kept in pool.kept.values())


async def test_what_is_in_the_pool_is_neither_decoded_nor_encoded(
    encodings: Encodings, tower: Tower, pool: Pool
) -> None:
    tower.let.set()
    first = await rows_of(encodings, "a")
    assert await rows_of(encodings, "a") is first
    assert (tower.started, len(tower.decoded)) == (1, 1)
    assert first.pins == 0


async def test_without_room_in_the_pool_the_rows_themselves_are_sent(
    encodings: Encodings, tower: Tower, pool: Pool
) -> None:
    pool.has_room = False
    tower.let.set()
    assert isinstance(await rows_of(encodings, "a"), torch.Tensor)
    await rows_of(encodings, "a")
    assert tower.started == 2


async def test_one_that_leaves_does_not_end_it_for_others(
    encodings: Encodings, tower: Tower
) -> None:
    leaving, staying = (asyncio.ensure_future(rows_of(encodings, "a")) for _ in range(2))
    await seen(lambda: tower.started == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert tower.cancelled == 0
    tower.let.set()
    await staying


async def test_the_last_one_that_leaves_ends_it(
    encodings: Encodings, tower: Tower, pool: Pool
) -> None:
    tasks = [asyncio.ensure_future(rows_of(encodings, "a")) for _ in range(2)]
    await seen(lambda: tower.started == 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await seen(lambda: tower.cancelled == 1)
    tower.let.set()
    await rows_of(encodings, "a")
    assert tower.started == 2


async def test_an_error_reaches_everybody_and_the_next_begins_anew(
    encodings: Encodings, tower: Tower
) -> None:
    tower.error = Refused(Reason.BAD_REQUEST, "no picture")
    tower.let.set()
    tasks = [asyncio.ensure_future(rows_of(encodings, "a")) for _ in range(2)]
    for task in tasks:
        with pytest.raises(Refused, match="no picture"):
            await task
    with ExitStack() as first_user:
        failed = first_user.enter_context(encodings.of(content("a")))
        await failed.sized()
        with pytest.raises(Refused):
            await failed.rows()
        tower.error = None
        await rows_of(encodings, "a")  # while somebody still has the one that failed


async def test_few_are_prepared_ahead_and_all_get_their_turn(
    encodings: Encodings, tower: Tower
) -> None:
    names = [chr(ord("a") + i) for i in range(2 * MAX_PREPARED)]
    tasks = [asyncio.ensure_future(rows_of(encodings, name)) for name in names]
    await seen(lambda: tower.started == MAX_PREPARED)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(tower.decoded) == MAX_PREPARED
    for task in tasks[:3]:
        task.cancel()  # their places are given to others
    await seen(lambda: len(tower.decoded) == MAX_PREPARED + 3)
    tower.let.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert encodings.totals.encodes == len(names) - 3
