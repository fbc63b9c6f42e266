# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Default grants that follow the lengths (`--adaptive-default`), against those of 8 blocks.

Long embeddings one at a time: how many need a second grant. Short ones, many at once through a
pool that is small for so many: how long they wait for blocks that others hold and do not fill.
"""

from typing import Final

from benchmarks.bench import Bench, turn
from benchmarks.contenders import OURS
from benchmarks.results import Results, Series
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import Order, PoolShape, Setup
from dynamo.sglang_mm_resume.core.lengths import ENOUGH

NAME: Final = "adaptive"
ROUNDS: Final = "rounds"
TIME: Final = "hand-off, from the reservation on"
WAIT: Final = "wait for blocks"
FIXED: Final = "fixed"
ADAPTIVE: Final = "adaptive"
LONG: Final = 2000
SHORT: Final = 64
AT_ONCE: Final = 64
POOL: Final = 64
#: Long ones, one after the other, after those that are learned from.
SINGLES: Final = 8
REPEATS: Final = 20
QUICK_REPEATS: Final = 3
SHAPES: Final = {
    FIXED: PoolShape(pool_blocks=2 * POOL),
    ADAPTIVE: PoolShape(pool_blocks=2 * POOL, adaptive=True),
}
CROWDED: Final = {
    FIXED: PoolShape(pool_blocks=POOL),
    ADAPTIVE: PoolShape(pool_blocks=POOL, adaptive=True),
}


async def run(bench: Bench) -> None:
    async with bench.teams([OURS]) as teams:
        for team in teams:
            async with turn(team):
                setup = Setup(LONG, in_flight=AT_ONCE, device=bench.device)
                await team.start(setup)
                with bench.progress(NAME, QUICK_REPEATS if bench.quick else REPEATS) as repeats:
                    for _ in repeats:
                        for name in SHAPES:
                            await _one_at_a_time(bench, team, name)
                            await _many_at_once(bench, team, name)


async def _one_at_a_time(bench: Bench, team: Team, name: str) -> None:
    await _learn(team, LONG, SHAPES[name])
    for _ in range(SINGLES):
        done = await team.hand_off(Order(LONG, shape=SHAPES[name]))
        num_rounds = len(done.details["stall"]) + 1
        bench.results.add(NAME, ROUNDS, "rounds", (LONG, 1), name, num_rounds)
        took = done.seconds["ours + grants"]
        bench.results.add(NAME, TIME, "ms", (LONG, 1), name, took * 1e3)


async def _many_at_once(bench: Bench, team: Team, name: str) -> None:
    await _learn(team, SHORT, CROWDED[name])
    burst = await team.burst(SHORT, AT_ONCE, shape=CROWDED[name])
    case = (SHORT, AT_ONCE)
    for one in burst.done[0]:
        took, waits = one.seconds["ours + grants"], one.details["buffer wait"]
        bench.results.add(NAME, TIME, "ms", case, name, took * 1e3)
        bench.results.add(NAME, WAIT, "ms", case, name, sum(waits) * 1e3)


async def _learn(team: Team, tokens: int, shape: PoolShape) -> None:
    """A pool that is cut anew knows no lengths."""
    for _ in range(ENOUGH):
        await team.hand_off(Order(tokens, shape=shape))


def fixed(results: Results, series: Series) -> float | None:
    """Median with default grants as configured."""
    return results.median(NAME, series.measure, series.case, FIXED)


SUITE: Final = Suite(
    NAME,
    "Default grants that follow the lengths",
    f"{LONG:,} tokens one at a time; {SHORT} tokens, {AT_ONCE} at once through {POOL} blocks. "
    f"Fixed: {SHAPES[FIXED].default_blocks} blocks.",
    ("tokens", "at once"),
    {"x fixed": fixed},
    run,
)
