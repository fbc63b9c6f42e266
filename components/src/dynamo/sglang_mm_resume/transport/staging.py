# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How rows come into blocks of our own pool, from which NIXL writes them.

`Stored`: the whole embedding has blocks, is copied in once, and stays there as long as nobody needs
them for something else. `Staged`, where the pool has no room for that: each piece is copied into
blocks that are borrowed until it is written.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Final

import torch

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.cache import CacheEntry, EmbeddingCache
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.queue import GrantQueue
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

#: Bytes that are copied between two reports that more rows are in their blocks.
FILL_STEP: Final = 2**20


class StagingPool:
    """Blocks, or turns to post, lent per piece in order of arrival."""

    def __init__(self, pool: BlockPool, cache: EmbeddingCache | None = None) -> None:
        """`cache`: keeps embeddings in blocks of the pool, until somebody waits for these."""
        self.pool = pool
        self._cache = cache
        self._queue = GrantQueue(pool)
        self._waiting: dict[str, asyncio.Future[Lease]] = {}
        self._borrowers = 0

    async def borrow(self, num_blocks: int) -> Lease:
        """`num_blocks` blocks as soon as they are free; those before us come first."""
        self._borrowers += 1
        key = str(self._borrowers)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        self._queue.push(key, num_blocks)
        self.serve()
        try:
            return await future
        except asyncio.CancelledError:
            self._queue.cancel(key)
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            else:
                self.serve()  # those behind us may fit
            raise
        finally:
            self._waiting.pop(key, None)

    async def borrow_unless_over(
        self, num_blocks: int, closed: asyncio.Event, deadline: float
    ) -> Lease:
        """`borrow`, but raises `TransferFailed` once `closed` is set or `deadline` has passed."""
        borrowing = asyncio.ensure_future(self.borrow(num_blocks))
        over = asyncio.ensure_future(closed.wait())
        patience_s = max(0.0, deadline - time.monotonic())
        try:
            await asyncio.wait(
                (borrowing, over), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            over.cancel()
        if borrowing.done():
            return borrowing.result()
        borrowing.cancel()  # gives back what it may be lent in this very moment
        await asyncio.gather(borrowing, return_exceptions=True)
        why = "was closed" if closed.is_set() else "expired"
        raise TransferFailed(f"the transfer {why} while its chunk waited to be posted")

    def give_back(self, lease: Lease) -> None:
        self.pool.release(lease)
        self.serve()

    def serve(self) -> None:
        """Lend what has become free to those who wait."""
        while self._serve_once():
            pass

    @property
    def is_idle(self) -> bool:
        """Nobody has borrowed anything, and nobody waits."""
        return not self._waiting and self.pool.stats().held == 0

    def _serve_once(self) -> bool:
        if self._cache is not None:
            self._cache.make_room(self._queue.next_wish)
        served = self._queue.pump()
        for key, lease in served:
            if self._waiting[key].cancelled():
                self.pool.release(lease)
            else:
                self._waiting[key].set_result(lease)
        return bool(served)


class Staged:
    """Rows, `(num_tokens, width)`, that pass through borrowed blocks."""

    def __init__(
        self,
        rows: torch.Tensor,
        staging: StagingPool,
        memory: PoolMemory,
        threads: Executor,
        max_blocks: int,
    ) -> None:
        """`max_blocks`: the most that may be borrowed at once."""
        self.num_tokens = len(rows)
        self.max_blocks = max_blocks
        self._rows = rows
        self._staging = staging
        self._memory = memory
        self._threads = threads

    def rows(self, first_token: int, num_tokens: int) -> torch.Tensor:
        """Some rows, for their checksum."""
        return self._rows[first_token : first_token + num_tokens]

    @asynccontextmanager
    async def blocks(
        self, first_token: int, num_tokens: int, closed: asyncio.Event, deadline: float
    ) -> AsyncIterator[tuple[int, ...]]:
        """Blocks of ours that hold these rows until the context ends.

        Raises `TransferFailed` once `closed` is set or `deadline` has passed.
        """
        rows = self.rows(first_token, num_tokens)
        num_blocks = self._memory.layout.blocks_for(num_tokens)
        lease = await self._staging.borrow_unless_over(num_blocks, closed, deadline)
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, self._memory.scatter, rows, lease.blocks)
            yield lease.blocks
        finally:
            # The write has ended, well or badly: our blocks are nobody's source any more.
            self._staging.give_back(lease)


class Stored:
    """An embedding in blocks of its own, which nobody takes away before the last `unpin` (R6)."""

    def __init__(
        self,
        entry: CacheEntry,
        cache: EmbeddingCache,
        staging: StagingPool,
        memory: PoolMemory,
        is_filled: bool,
    ) -> None:
        """`entry` is pinned for whoever makes this. Unless all rows are there, `fill` it."""
        self.num_tokens = entry.sized.total_tokens
        self.sized = entry.sized
        self.max_blocks = len(entry.lease.blocks)
        self._entry = entry
        self._cache = cache
        self._staging = staging
        self._memory = memory
        self._filled = self.num_tokens if is_filled else 0
        self._failure: Exception | None = None
        self._advanced = asyncio.Event()

    def rows(self, first_token: int, num_tokens: int) -> torch.Tensor:
        """A copy of some rows, for their checksum."""
        rows = self._memory.empty_rows(num_tokens)
        self._memory.gather(self._blocks(first_token, num_tokens), rows)
        return rows

    def pin(self) -> None:
        """For one more user."""
        self._cache.pin(self._entry)

    def unpin(self) -> None:
        """Those who wait for blocks may have these, after the last of us."""
        self._cache.unpin(self._entry)
        self._staging.serve()

    @asynccontextmanager
    async def blocks(
        self, first_token: int, num_tokens: int, closed: asyncio.Event, deadline: float
    ) -> AsyncIterator[tuple[int, ...]]:
        """As `Staged.blocks`; waits for rows that are on their way."""
        self.pin()
        try:
            await self._filled_to(first_token + num_tokens)
            yield self._blocks(first_token, num_tokens)
        finally:
            self.unpin()

    async def fill(self, rows: torch.Tensor, threads: Executor) -> None:
        """Copy `rows` in; then others may find them. Whoever waits for rows hears of a failure."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(threads, self._copy, rows, loop)
            self._cache.publish(self._entry)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._advanced.set()
            self.unpin()

    def _copy(self, rows: torch.Tensor, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread."""
        layout = self._memory.layout
        step = max(1, FILL_STEP // layout.block_bytes) * layout.block_size
        for first in range(0, self.num_tokens, step):
            part = rows[first : first + step]
            self._memory.scatter(part, self._blocks(first, len(part)))
            loop.call_soon_threadsafe(self._advance, first + len(part))

    def _advance(self, num_tokens: int) -> None:
        self._filled = num_tokens
        self._advanced.set()

    async def _filled_to(self, num_tokens: int) -> None:
        while self._filled < num_tokens:
            if self._failure is not None:
                raise TransferFailed(f"the embedding could not be stored: {self._failure}")
            self._advanced.clear()
            await self._advanced.wait()

    def _blocks(self, first_token: int, num_tokens: int) -> tuple[int, ...]:
        layout = self._memory.layout
        first = first_token // layout.block_size
        return self._entry.lease.blocks[first : first + layout.blocks_for(num_tokens)]


Source = Staged | Stored
