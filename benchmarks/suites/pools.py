# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One long embedding through pools of every size: what does a small pool cost?"""

from typing import Final

from benchmarks.bench import Bench, turn
from benchmarks.contenders import OURS
from benchmarks.results import Results, Series
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import SETTINGS, Order, PoolShape, Setup

NAME: Final = "pools"
TIME: Final = "hand-off"
ROUNDS: Final = "rounds"
TOKENS: Final = 16384
POOLS: Final = (1, 2, 4, 8, 16, 32, 128, 512)
AMPLE: Final = POOLS[-1]
QUICK: Final = (1, 16, AMPLE)
REPEATS: Final = 40
QUICK_REPEATS: Final = 5


async def run(bench: Bench) -> None:
    sizes = QUICK if bench.quick else POOLS
    async with bench.teams([OURS]) as teams:
        for team in teams:
            async with turn(team):
                await team.start(Setup(TOKENS, device=bench.device))
                for size in sizes:
                    await team.hand_off(Order(TOKENS, shape=shape_of(size), verify=True))
                await _measure(bench, team, sizes)


async def _measure(bench: Bench, team: Team, sizes: tuple[int, ...]) -> None:
    with bench.progress(NAME, QUICK_REPEATS if bench.quick else REPEATS) as repeats:
        for _ in repeats:
            for size in sizes:
                done = await team.hand_off(Order(TOKENS, shape=shape_of(size)))
                milliseconds = done.seconds[OURS.name] * 1e3
                num_rounds = len(done.details["stall"]) + 1
                bench.results.add(NAME, TIME, "ms", (size,), OURS.name, milliseconds)
                bench.results.add(NAME, ROUNDS, "rounds", (size,), OURS.name, num_rounds)


def shape_of(size: int) -> PoolShape:
    """A pool of `size` blocks on both sides, the default grant as large as it allows."""
    return PoolShape(pool_blocks=size, default_blocks=min(size, SETTINGS.default_blocks))


def ample(results: Results, series: Series) -> float | None:
    """Median with the largest pool."""
    return results.median(NAME, series.measure, (AMPLE,), series.contender)


SUITE: Final = Suite(
    NAME,
    f"{TOKENS:,} tokens through pools of every size",
    "Both sides have a pool of so many blocks of 128 tokens; the default is 512.",
    ("pool blocks",),
    {f"x {AMPLE} blocks": ample},
    run,
)
