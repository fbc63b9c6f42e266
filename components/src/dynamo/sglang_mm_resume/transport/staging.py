# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How rows come into blocks of our own pool, from which NIXL writes them.

`Stored`: the whole embedding has blocks, is copied in once, and stays there as long as nobody needs
them for something else. `Staged`, where the pool has no room for that: each piece is copied into
blocks that are borrowed until it is written.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import torch

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.cache import CacheEntry, EmbeddingCache
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.queue import GrantQueue
from dynamo.sglang_mm_resume.transport.copies import DONE, Copy
from dynamo.sglang_mm_resume.transport.memory import PoolMemory


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
        if (lease := self._at_once(num_blocks)) is not None:
            return lease
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

    def _at_once(self, num_blocks: int) -> Lease | None:
        """The rule: two tasks and a wait cost more than a small embedding's copy."""
        if self._cache is not None and not len(self._queue):
            self._cache.make_room(num_blocks)
        return self._queue.try_now("", num_blocks)

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


@dataclass(frozen=True, slots=True)
class Lent:
    """Blocks of ours to write from, once the copy that `load` begins is done: in the thread that
    writes, so that the rows are still in its processor's cache when they are written.
    """

    blocks: tuple[int, ...]
    load: Callable[[], Copy]


class Staged:
    """Rows, `(num_tokens, width)`, that pass through borrowed blocks."""

    def __init__(
        self, rows: torch.Tensor, staging: StagingPool, memory: PoolMemory, max_blocks: int
    ) -> None:
        """`max_blocks`: the most that may be borrowed at once."""
        self.num_tokens = len(rows)
        self.max_blocks = max_blocks
        self._rows = rows
        self._staging = staging
        self._memory = memory

    def rows(self, first_token: int, num_tokens: int) -> torch.Tensor:
        """Some rows, for their checksum."""
        return self._rows[first_token : first_token + num_tokens]

    @asynccontextmanager
    async def lend(
        self, first_token: int, num_tokens: int, closed: asyncio.Event, deadline: float
    ) -> AsyncIterator[Lent]:
        """Blocks for these rows, nobody else's until the context ends.

        Raises `TransferFailed` once `closed` is set or `deadline` has passed.
        """
        rows = self.rows(first_token, num_tokens)
        num_blocks = self._memory.layout.blocks_for(num_tokens)
        lease = await self._staging.borrow_unless_over(num_blocks, closed, deadline)
        try:
            yield Lent(lease.blocks, partial(self._memory.scatter, rows, lease.blocks))
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
        rows: torch.Tensor | None = None,
    ) -> None:
        """`entry` is pinned for whoever makes this. `rows`: what is not in the blocks yet."""
        self.num_tokens = entry.sized.total_tokens
        self.sized = entry.sized
        self.max_blocks = len(entry.lease.blocks)
        self._entry = entry
        self._cache = cache
        self._staging = staging
        self._memory = memory
        self._rows = rows
        self._missing = set(entry.lease.blocks if rows is not None else ())
        self._last_copy = DONE

    def rows(self, first_token: int, num_tokens: int) -> torch.Tensor:
        """Some rows, for their checksum."""
        if self._rows is not None:
            return self._rows[first_token : first_token + num_tokens]
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
    async def lend(
        self, first_token: int, num_tokens: int, closed: asyncio.Event, deadline: float
    ) -> AsyncIterator[Lent]:
        """As of `Staged`; but the rows stay. Others find them as soon as all are there."""
        self.pin()
        try:
            blocks = self._blocks(first_token, num_tokens)
            yield Lent(blocks, partial(self._load, first_token, num_tokens))
        finally:
            # If the last copy is of another chunk, that one comes here after its end.
            if not self._missing and self._last_copy.done:
                self._rows = None
                self._cache.publish(self._entry)
            self.unpin()

    def _load(self, first_token: int, num_tokens: int) -> Copy:
        """Copy what is not there. In the one thread that writes, whoever else wants the rows.

        Copies end in the order in which they were begun: after the last one, all are there.
        """
        blocks = self._blocks(first_token, num_tokens)
        if self._rows is not None and not self._missing.isdisjoint(blocks):
            rows = self._rows[first_token : first_token + num_tokens]
            self._last_copy = self._memory.scatter(rows, blocks)
            self._missing.difference_update(blocks)
        return self._last_copy

    def _blocks(self, first_token: int, num_tokens: int) -> tuple[int, ...]:
        layout = self._memory.layout
        first = first_token // layout.block_size
        return self._entry.lease.blocks[first : first + layout.blocks_for(num_tokens)]


Source = Staged | Stored
