# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What waits for the vision tower goes through it together, one batch after the other."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.histogram import FEW, SECONDS, Histogram

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[Item, Result]):
    item: Item
    size: int
    result: "asyncio.Future[Result]"


class Batches(Generic[Item, Result]):
    """Nobody waits for company: a batch is what has come while the last one was worked on."""

    def __init__(
        self,
        work: Callable[[list[Item]], Awaitable[list[Result]]],
        max_items: int,
        max_size: int,
        at_once: int = 1,
    ) -> None:
        """`work` makes one result per item. `max_size`: sum of sizes, unless one alone has more;
        `at_once`: batches that are worked on at the same time.
        """
        self.sizes = Histogram(FEW)
        """Items of each batch since the start."""
        self.seconds = Histogram(SECONDS)
        """How long each took that did not fail."""
        self._work = work
        self._max_items = max_items
        self._max_size = max_size
        self._waiting: deque[_Waiter[Item, Result]] = deque()
        self._at_once = at_once
        self._working: list[asyncio.Task[None]] = []

    async def result_of(self, item: Item, size: int) -> Result:
        """Its result, or what `work` raises for it. Cancelling takes out what waits yet."""
        waiter: _Waiter[Item, Result] = _Waiter(
            item, size, asyncio.get_running_loop().create_future()
        )
        self._waiting.append(waiter)
        self._working = [working for working in self._working if not working.done()]
        if len(self._working) < self._at_once:
            with tracing.within(None):  # it goes on with the items of others
                self._working.append(asyncio.ensure_future(self._work_off()))
        return await waiter.result

    @property
    def num_waiting(self) -> int:
        """Items that no batch has taken up."""
        return sum(not waiter.result.cancelled() for waiter in self._waiting)

    async def _work_off(self) -> None:
        while batch := self._next_batch():
            await self._do(batch)

    def _next_batch(self) -> list[_Waiter[Item, Result]]:
        batch: list[_Waiter[Item, Result]] = []
        size = 0
        while self._waiting and len(batch) < self._max_items:
            waiter = self._waiting[0]
            if waiter.result.cancelled():
                self._waiting.popleft()
                continue
            if batch and size + waiter.size > self._max_size:
                break
            batch.append(self._waiting.popleft())
            size += waiter.size
        return batch

    async def _do(self, batch: list[_Waiter[Item, Result]]) -> None:
        self.sizes.observe(len(batch))
        try:
            with tracing.Span(self.seconds):
                results = await self._work([waiter.item for waiter in batch])
        except Exception as error:
            await self._blame(batch, error)
        else:
            for waiter, result in zip(batch, results, strict=True):
                if not waiter.result.done():  # else whoever waited is gone
                    waiter.result.set_result(result)
        finally:
            for waiter in batch:  # cut short: nobody waits for ever
                waiter.result.cancel()

    async def _blame(self, batch: list[_Waiter[Item, Result]], error: Exception) -> None:
        """One of them is the cause, or they are too many: each is tried alone."""
        if len(batch) > 1:
            for waiter in batch:
                if not waiter.result.done():
                    await self._do([waiter])
        elif not batch[0].result.done():
            batch[0].result.set_exception(error)
