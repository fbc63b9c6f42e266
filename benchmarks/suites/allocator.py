# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Taking and giving back 8 blocks of a large pool, however full and in whatever order."""

import random
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.bench import Bench
from benchmarks.suites import Suite
from benchmarks.workload import SETTINGS
from dynamo.sglang_mm_resume.core.blocks import BlockPool

NAME: Final = "allocator"
TIME: Final = "allocate and free"
BLOCKS: Final = 100_000
AT_ONCE: Final = 8
OCCUPANCIES: Final = (0, 50, 90, 99)
FRESH: Final = "in order"
FRAGMENTED: Final = "fragmented"
REPEATS: Final = 20_000
QUICK_REPEATS: Final = 2_000
CONTENDER: Final = "our pool"


async def run(bench: Bench) -> None:
    repeats = QUICK_REPEATS if bench.quick else REPEATS
    for occupancy in OCCUPANCIES:
        for layout in (FRESH, FRAGMENTED):
            pool = filled(BLOCKS, occupancy, fragmented=layout == FRAGMENTED)
            took = _measure(pool, repeats)
            bench.results.add(NAME, TIME, "us", (occupancy, layout), CONTENDER, *took)


def _measure(pool: BlockPool, repeats: int) -> Sequence[float]:
    took = []
    for _ in range(repeats):
        began = time.perf_counter_ns()
        lease = pool.try_alloc_blocks(AT_ONCE, "benchmark")
        if lease is None:
            raise RuntimeError("the pool is too full to be measured")
        pool.release(lease)
        took.append((time.perf_counter_ns() - began) / 1e3)
    return took


def filled(num_blocks: int, occupancy: int, fragmented: bool) -> BlockPool:
    """A pool with `occupancy` per cent of its blocks taken: the first ones, or any at all."""
    pool = BlockPool(num_blocks, SETTINGS.block_size, SETTINGS.default_blocks)
    keep = num_blocks * occupancy // 100
    if not fragmented:
        if keep:
            pool.try_alloc_blocks(keep, "holder")
        return pool
    leases = [pool.try_alloc_blocks(1, "holder") for _ in range(num_blocks)]
    random.Random(0).shuffle(leases)
    for lease in leases[keep:]:
        if lease is not None:
            pool.release(lease)
    return pool


SUITE: Final = Suite(
    NAME,
    f"Taking and giving back {AT_ONCE} of {BLOCKS:,} blocks",
    "Fragmented: the free blocks are any, and were given back in any order.",
    ("% taken", "free blocks"),
    {},
    run,
)
