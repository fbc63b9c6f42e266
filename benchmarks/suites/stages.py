# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of our own hand-off goes, step by step."""

from typing import Final

from benchmarks.bench import Bench, check, turn
from benchmarks.contenders import TRACED
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import Order, Setup

NAME: Final = "stages"
BEGINS: Final = "first begins"
ENDS: Final = "last ends"
BUSY: Final = "in sum"
TOKENS: Final = (64, 1024, 16384)
REPEATS: Final = 50
QUICK_REPEATS: Final = 5


async def run(bench: Bench) -> None:
    async with bench.teams([TRACED]) as teams:
        for team in teams:
            async with turn(team):
                await team.start(Setup(max(TOKENS), device=bench.device))
                for tokens in TOKENS:
                    await check(team, tokens)
                with bench.progress(NAME, QUICK_REPEATS if bench.quick else REPEATS) as repeats:
                    for _ in repeats:
                        for tokens in TOKENS:
                            await _one(bench, team, tokens)


async def _one(bench: Bench, team: Team, tokens: int) -> None:
    done = await team.hand_off(Order(tokens))
    for step, (began, ended, busy) in done.details.items():
        for measure, value in ((BEGINS, began), (ENDS, ended), (BUSY, busy)):
            bench.results.add(NAME, measure, "ms", (tokens, step), TRACED.name, value * 1e3)


SUITE: Final = Suite(
    NAME,
    "The steps of our hand-off",
    "From the moment when the embedding exists. Steps of different chunks overlap.",
    ("tokens", "step"),
    {},
    run,
    is_wide=True,
)
