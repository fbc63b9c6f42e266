# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The same embedding in 1 to 64 rounds: what does one more resume round cost?

*waiting*: the pool has room for one grant only, so every round waits until the last one's blocks
are home. *ahead*: the pool has room, only the grants are small, so that a try may bring the next
before the writer has filled the last; a stall is the time that it had nothing to fill. Grants of a
real pool with room are not small: all that is missing comes with the second, which is tried for
while the tower runs. Both over Dynamo's RPC between the real handlers of three workers, and over
the benchmark's own channel, which shows what the RPC takes.
"""

import tempfile
from typing import Final

from benchmarks.bench import Bench, rotated, turn
from benchmarks.contenders import DEPLOYED, OURS
from benchmarks.results import Results, Series
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import SETTINGS, Order, PoolShape, Setup

NAME: Final = "rounds"
TIME: Final = "hand-off"
STALL: Final = "stall per round"
EXTRA: Final = "cost of one more round"
BLOCKS: Final = 64
TOKENS: Final = BLOCKS * SETTINGS.block_size
ROUNDS: Final = (1, 2, 4, 8, 16, 32, 64)
QUICK: Final = (1, 2, 8, 64)
REPEATS: Final = 30
QUICK_REPEATS: Final = 5
WAITING: Final = "waiting"
AHEAD: Final = "ahead"
#: What is added to a mode where control messages take the benchmark's channel.
NO_RPC: Final = ", no RPC"


async def run(bench: Bench) -> None:
    cases = [
        (num_rounds, mode)
        for num_rounds in (QUICK if bench.quick else ROUNDS)
        for mode in (WAITING, AHEAD)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        real = [] if bench.quick else [DEPLOYED]  # SGLang takes half a minute to load
        async with bench.teams(real, num_writers=2) as deployed, bench.teams([OURS]) as ours:
            teams = [*deployed, *ours]
            for team in teams:
                async with turn(team):
                    await team.start(Setup(TOKENS, device=bench.device, scratch=scratch))
                    for case in cases:
                        await team.hand_off(Order(TOKENS, shape=shape_of(*case), verify=True))
            with bench.progress(NAME, QUICK_REPEATS if bench.quick else REPEATS) as repeats:
                for number in repeats:
                    for team in rotated(teams, number):
                        async with turn(team):
                            await _measure(bench, team, cases)


async def _measure(bench: Bench, team: Team, cases: list[tuple[int, str]]) -> None:
    singles: dict[str, float] = {}
    for num_rounds, mode in cases:
        done = await team.hand_off(Order(TOKENS, shape=shape_of(num_rounds, mode)))
        case, took = (num_rounds,), done.seconds[OURS.name] * 1e3
        name = mode if team.contender is DEPLOYED else mode + NO_RPC
        bench.results.add(NAME, TIME, "ms", case, name, took)
        single = singles.setdefault(mode, took)
        if num_rounds > 1:
            stalls = (stall * 1e3 for stall in done.details["stall"])
            extra = (took - single) / (num_rounds - 1)
            bench.results.add(NAME, STALL, "ms", case, name, *stalls)
            bench.results.add(NAME, EXTRA, "ms", case, name, extra)


def shape_of(num_rounds: int, mode: str) -> PoolShape:
    """Pools and grants that make for so many rounds."""
    ration = BLOCKS // num_rounds
    if mode == WAITING:
        return PoolShape(pool_blocks=ration, default_blocks=ration)
    return PoolShape(default_blocks=ration, ration=ration)


def single(results: Results, series: Series) -> float | None:
    """Median of the same in one round."""
    if series.measure != TIME:
        return None
    return results.median(NAME, TIME, (1,), series.contender)


SUITE: Final = Suite(
    NAME,
    f"{TOKENS:,} tokens in so many rounds",
    "Waiting: the pool holds one grant only. Ahead: the pool has room, the grants are small. "
    "Over Dynamo's RPC between three workers, or over the benchmark's own channel (no RPC).",
    ("rounds",),
    {"x one round": single},
    run,
)
