# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Who waits for blocks, and in which order they are served (R5).

Strictly by priority, then by arrival. Only the head may be served, so a small wish never
overtakes a large one and a large one never waits longer than those before it hold blocks.
"""

import heapq
from dataclasses import dataclass, field

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease


@dataclass(order=True, slots=True)
class _Waiter:
    rank: tuple[int, int]  # (-priority, arrival)
    key: str = field(compare=False)
    num_blocks: int = field(compare=False)


class GrantQueue:
    """Wishes for blocks of one pool. A key waits at most once.

    `divisible`: a wish may be served with less while blocks are quarantined, because the rest
    can be resumed. A fixed slot is not: it waits for all of its blocks.
    """

    def __init__(self, pool: BlockPool, divisible: bool = True) -> None:
        self._pool = pool
        self._divisible = divisible
        self._heap: list[_Waiter] = []
        self._waiting: dict[str, _Waiter] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, key: str, num_blocks: int, priority: int = 0) -> None:
        """Queue a wish; `pump` serves it. Larger `priority` is served earlier."""
        if key in self._waiting:
            raise ValueError(f"{key} waits already")
        waiter = _Waiter((-priority, self._arrivals), key, num_blocks)
        self._arrivals += 1
        self._waiting[key] = waiter
        heapq.heappush(self._heap, waiter)

    def cancel(self, key: str) -> None:
        """Forget a wish; unknown keys are ignored, as a wish may just have been served."""
        self._waiting.pop(key, None)

    @property
    def next_wish(self) -> int:
        """Blocks that the next to be served waits for; 0 if nobody waits."""
        head = self._head()
        return 0 if head is None else self._wanted(head)

    def pump(self) -> list[tuple[str, Lease]]:
        """Serve the head of the queue as long as its whole wish fits."""
        served = []
        while (head := self._head()) is not None:
            wanted = self._wanted(head)
            lease = self._pool.try_alloc_blocks(wanted, head.key) if wanted else None
            if lease is None:
                break
            heapq.heappop(self._heap)
            del self._waiting[head.key]
            served.append((head.key, lease))
        return served

    def try_now(self, key: str, num_blocks: int) -> Lease | None:
        """Blocks at once or not at all; never ahead of somebody who waits (R4, R5)."""
        if self._waiting:
            return None
        return self._pool.try_alloc_blocks(min(num_blocks, self._pool.num_blocks), key)

    def _wanted(self, waiter: _Waiter) -> int:
        """Quarantined blocks may stay away for long: ask for what can ever come back."""
        if not self._divisible:
            return waiter.num_blocks
        return min(waiter.num_blocks, self._pool.usable_blocks)

    def _head(self) -> _Waiter | None:
        while self._heap and self._waiting.get(self._heap[0].key) is not self._heap[0]:
            heapq.heappop(self._heap)  # cancelled
        return self._heap[0] if self._heap else None
