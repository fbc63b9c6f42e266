# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Tasks: ones that outlive a request, and ones that must not outlive something else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


def in_thread(threads: Executor, function: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
    """What `function` returns, in a thread; it belongs to the request that is worked on here."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(threads, copy_context().run, function, *args)


async def unless(over: Awaitable[Any], work: Awaitable[T], error: Callable[[], Exception]) -> T:
    """What `work` returns. Cancels it and raises `error()` once `over` is done first."""
    task = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(over)
    try:
        await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)  # its clean-up comes first
        raise error()
    finally:
        task.cancel()
        ending.cancel()


class Background:
    """Tasks that outlive a request, such as giving blocks back. None is lost, none is silent."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Awaitable[Any]) -> "asyncio.Task[Any]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def cancel(self) -> None:
        """End all of them, and wait for their clean-up."""
        for task in self._tasks:
            task.cancel()
        await self.finish()

    async def finish(self) -> None:
        """Wait for all of them."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reap(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a background task failed", exc_info=task.exception())
