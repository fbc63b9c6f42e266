# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Owns which block belongs to whom. Knows nothing of memory, NIXL or asyncio.

A block is free, held (by one lease) or quarantined (by one lease whose writer may still
write, R6). Not thread-safe: one event loop owns a pool.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from dynamo.sglang_mm_resume.core.errors import PoolError
from dynamo.sglang_mm_resume.core.layout import blocks_for


@dataclass(frozen=True, slots=True)
class Lease:
    """Blocks that one owner holds. `generation` is never used twice by a pool (R8)."""

    generation: int
    owner: str
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Blocks by state. The first three always add up to the fourth."""

    free: int
    held: int
    quarantined: int
    total: int
    peak_used: int


class _Status(Enum):
    HELD = auto()
    QUARANTINED = auto()


class BlockPool:
    """Lowest-index-first, non-contiguous allocation of `num_blocks` equal blocks (R2).

    `default_blocks`, the size of a grant before a length is known, may change at any time.
    """

    def __init__(self, num_blocks: int, block_size: int, default_blocks: int) -> None:
        if num_blocks < 1 or block_size < 1 or default_blocks < 1:
            raise PoolError(f"a pool needs blocks: {num_blocks=} {block_size=} {default_blocks=}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.default_blocks = min(default_blocks, num_blocks)
        self._free = list(range(num_blocks))  # a heap: the lowest index is always first
        self._leases: dict[int, tuple[Lease, _Status]] = {}
        self._quarantined_blocks = 0
        self._next_generation = 0
        self._peak_used = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usable_blocks(self) -> int:
        """Blocks that are free or will be once their holders are done; quarantine is not."""
        return self.num_blocks - self._quarantined_blocks

    def alloc_default(self, owner: str) -> Lease | None:
        """The grant that is given before a length is known (R3); `None` when too full."""
        return self.try_alloc_blocks(self.default_blocks, owner)

    def alloc(self, num_tokens: int, owner: str) -> Lease | None:
        """Blocks for `num_tokens` tokens, all or nothing (R5); `None` when too full."""
        return self.try_alloc_blocks(blocks_for(num_tokens, self.block_size), owner)

    def try_alloc_blocks(self, num_blocks: int, owner: str) -> Lease | None:
        """`num_blocks` blocks, lowest indices first, or `None` and nothing changes."""
        if not 1 <= num_blocks <= self.num_blocks:
            raise PoolError(f"{num_blocks} blocks asked of a pool of {self.num_blocks}")
        if num_blocks > len(self._free):
            return None
        blocks = tuple(heapq.heappop(self._free) for _ in range(num_blocks))
        lease = Lease(self._next_generation, owner, blocks)
        self._next_generation += 1
        self._leases[lease.generation] = (lease, _Status.HELD)
        self._peak_used = max(self._peak_used, self.num_blocks - len(self._free))
        return lease

    def release(self, lease: Lease) -> None:
        """Give a held lease back. Raises `PoolError` if it is not held."""
        self._end(lease, _Status.HELD)

    def quarantine(self, lease: Lease) -> None:
        """Keep a held lease's blocks away from everybody until `settle` (R6)."""
        self._require(lease, _Status.HELD)
        self._leases[lease.generation] = (lease, _Status.QUARANTINED)
        self._quarantined_blocks += len(lease.blocks)

    def settle(self, lease: Lease) -> None:
        """The writer of a quarantined lease is closed or dead: its blocks return."""
        self._end(lease, _Status.QUARANTINED)
        self._quarantined_blocks -= len(lease.blocks)

    def stats(self) -> PoolStats:
        free = len(self._free)
        held = self.num_blocks - free - self._quarantined_blocks
        return PoolStats(free, held, self._quarantined_blocks, self.num_blocks, self._peak_used)

    def check(self) -> None:
        """Raise `PoolError` unless every block has exactly one owner."""
        leased = [block for lease, _ in self._leases.values() for block in lease.blocks]
        if sorted(self._free + leased) != list(range(self.num_blocks)):
            raise PoolError(f"blocks lost or owned twice: free {self._free}, leased {leased}")

    def leases(self) -> Iterable[Lease]:
        """Every lease that is held or quarantined."""
        return [lease for lease, _ in self._leases.values()]

    def _require(self, lease: Lease, status: _Status) -> None:
        found = self._leases.get(lease.generation)
        if found != (lease, status):
            state = "unknown" if found is None else found[1].name.lower()
            raise PoolError(f"{lease} is {state}, not {status.name.lower()}")

    def _end(self, lease: Lease, status: _Status) -> None:
        self._require(lease, status)
        del self._leases[lease.generation]
        for block in lease.blocks:
            heapq.heappush(self._free, block)
