# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Finished embeddings stay in the writer's blocks until others need these.

An entry is pinned by every transfer that reads it, and not evicted meanwhile (R6). Pinned entries
always leave a reserve to transfers that stage chunk by chunk: whoever has a receiver's blocks can
go on, whatever waits for them (R4).
"""

from collections import OrderedDict
from dataclasses import dataclass

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.errors import PoolError
from dynamo.sglang_mm_resume.core.layout import blocks_for
from dynamo.sglang_mm_resume.core.messages import Sized


@dataclass(slots=True, eq=False)
class CacheEntry:
    """An embedding in blocks of the pool. `pins`: transfers that read it, or fill it."""

    key: str
    sized: Sized
    lease: Lease
    pins: int = 1


@dataclass(slots=True)
class CacheTotals:
    """Counters since the start, for /metrics."""

    cache_hits: int = 0
    cache_misses: int = 0
    cache_evictions: int = 0


class EmbeddingCache:
    """Embeddings by content, least recently used first to go."""

    def __init__(self, pool: BlockPool, reserve_blocks: int) -> None:
        """`reserve_blocks`: blocks that pinned entries leave to others."""
        self.totals = CacheTotals()
        self._pool = pool
        self._max_pinned = max(0, pool.num_blocks - reserve_blocks)
        self._pinned_blocks = 0
        self._idle_blocks = 0  # of entries that nobody has pinned
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that could be had by evicting."""
        return self._idle_blocks

    def find(self, key: str) -> CacheEntry | None:
        """The embedding of this content, pinned for the caller, who must `unpin` it."""
        entry = self._entries.get(key)
        if entry is None or not self._may_pin(entry):
            self.totals.cache_misses += 1
            return None
        self.totals.cache_hits += 1
        self._entries.move_to_end(key)
        if not entry.pins:
            self._idle_blocks -= len(entry.lease.blocks)
            self._pinned_blocks += len(entry.lease.blocks)
        entry.pins += 1
        return entry

    def allocate(self, key: str, sized: Sized) -> CacheEntry | None:
        """Blocks for a whole embedding, pinned; nobody finds it before `publish`.

        Evicts what is in the way. `None`, and nothing changes, where it does not fit.
        """
        num_blocks = blocks_for(sized.total_tokens, self._pool.block_size)
        if self._pinned_blocks + num_blocks > self._max_pinned or not self.make_room(num_blocks):
            return None
        lease = self._pool.try_alloc_blocks(num_blocks, key)
        if lease is None:
            raise PoolError(f"no room for {num_blocks} blocks although it was made")
        self._pinned_blocks += num_blocks
        return CacheEntry(key, sized, lease)

    def publish(self, entry: CacheEntry) -> None:
        """Every row is in its blocks: it may be found, unless an equal one was first."""
        self._entries.setdefault(entry.key, entry)

    def pin(self, entry: CacheEntry) -> None:
        """For another reader of an entry that is pinned already."""
        if not entry.pins:
            raise PoolError(f"{entry.key} is not pinned: find it first")
        entry.pins += 1

    def unpin(self, entry: CacheEntry) -> None:
        """Its blocks stay for the next who wants it, or go home if it cannot be found."""
        entry.pins -= 1
        if entry.pins:
            return
        self._pinned_blocks -= len(entry.lease.blocks)
        if self._entries.get(entry.key) is entry:
            self._idle_blocks += len(entry.lease.blocks)
        else:
            self._pool.release(entry.lease)

    def make_room(self, num_blocks: int) -> bool:
        """Evict until so many blocks are free. False, and nothing changes, if that is too few."""
        missing = num_blocks - self._pool.num_free
        if missing > self._idle_blocks:
            return False
        victims = []
        for entry in self._entries.values():
            if missing <= 0:
                break
            if not entry.pins:
                victims.append(entry)
                missing -= len(entry.lease.blocks)
        for entry in victims:
            self._evict(entry)
        return True

    def _may_pin(self, entry: CacheEntry) -> bool:
        more = 0 if entry.pins else len(entry.lease.blocks)
        return self._pinned_blocks + more <= self._max_pinned

    def _evict(self, entry: CacheEntry) -> None:
        del self._entries[entry.key]
        self._idle_blocks -= len(entry.lease.blocks)
        self._pool.release(entry.lease)
        self.totals.cache_evictions += 1
