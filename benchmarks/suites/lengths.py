# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One hand-off at a time, of every length: all contenders, in turns."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.bench import Bench, check, rotated, turn, warm_up
from benchmarks.channel import Failed
from benchmarks.contenders import ALL, BARE, DYNAMO, SGLANG
from benchmarks.results import Results, Series
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import HIDDEN, Order, Setup

Step = Callable[[Team], Awaitable[None]]

NAME: Final = "lengths"
TIME: Final = "hand-off"


@dataclass(frozen=True, slots=True)
class Stage:
    """Lengths of one width. In each round, everybody hands each over `repeats` times.

    `hold`: keep the memory of all contenders over all rounds. Without, only the one whose turn it
    is has any.
    """

    tokens: tuple[int, ...]
    hidden: int = HIDDEN
    rounds: int = 50
    repeats: int = 2
    hold: bool = True


STAGES: Final = (
    Stage((64, 256, 1024, 2000, 4096)),
    Stage((16384,), rounds=20),
    Stage((1024,), hidden=1280, rounds=30),
    Stage((1024,), hidden=8192, rounds=30),
    Stage((65536,), rounds=2, repeats=3, hold=False),
)
QUICK: Final = (Stage((64, 1024, 16384), rounds=5, repeats=1),)
#: SGLang takes half a minute to load.
QUICK_CONTENDERS: Final = tuple(contender for contender in ALL if contender not in SGLANG)


async def run(bench: Bench) -> None:
    stages = QUICK if bench.quick else STAGES
    contenders = QUICK_CONTENDERS if bench.quick else ALL
    async with bench.teams(contenders) as teams:
        for stage in stages:
            await _Lengths(bench, teams, stage).run()
    for name, why in bench.dead.items():
        for stage in stages:
            for tokens in stage.tokens:
                bench.results.fail(NAME, TIME, "ms", (tokens, stage.hidden), name, why)


class _Lengths:
    """One stage of one run."""

    def __init__(self, bench: Bench, teams: Sequence[Team], stage: Stage) -> None:
        self._bench = bench
        self._teams = list(teams)
        self._stage = stage
        self._setup = Setup(max(stage.tokens), stage.hidden, device=bench.device)

    async def run(self) -> None:
        stage = self._stage
        if stage.hold:
            await self._each(self._prepare)
        label = f"{NAME}: {', '.join(f'{t:,}' for t in stage.tokens)} x {stage.hidden:,}"
        with self._bench.progress(label, stage.rounds) as rounds:
            for number in rounds:
                for team in rotated(self._teams, number):
                    async with turn(team):
                        await self._round(team)
        if stage.hold:
            await self._each(self._release)

    async def _round(self, team: Team) -> None:
        if self._stage.hold:
            await self._measure(team)
            return
        await self._prepare(team)
        await self._measure(team)
        await self._release(team)

    async def _each(self, step: Step) -> None:
        for team in self._teams:
            async with turn(team):
                await step(team)

    async def _prepare(self, team: Team) -> None:
        """Every length is checked before it is measured; what fails is not measured."""
        try:
            await team.start(self._setup)
        except Failed as error:
            for tokens in self._stage.tokens:
                self._fail(team, tokens, error)
            return
        for tokens in self._lengths(team):
            try:
                await check(team, tokens)
            except Failed as error:
                self._fail(team, tokens, error)

    async def _measure(self, team: Team) -> None:
        lengths = self._lengths(team)
        for number, tokens in enumerate(lengths):
            try:
                if self._stage.hold and not number:  # else it was checked just now
                    await warm_up(team, tokens)
                for _ in range(self._stage.repeats):
                    await self._one(team, tokens)
            except Failed as error:
                self._fail(team, tokens, error)

    async def _one(self, team: Team, tokens: int) -> None:
        done = await team.hand_off(Order(tokens, shape=team.contender.shape))
        for name, seconds in done.seconds.items():
            case = (tokens, self._stage.hidden)
            self._bench.results.add(NAME, TIME, "ms", case, name, seconds * 1e3)

    async def _release(self, team: Team) -> None:
        try:
            await team.release()
        except Failed as error:
            self._bench.complain(f"{team.name}: {error}")

    def _lengths(self, team: Team) -> list[int]:
        """Those that the team has not failed at."""
        results, hidden = self._bench.results, self._stage.hidden
        return [
            tokens
            for tokens in self._stage.tokens
            if not results.failed(NAME, TIME, (tokens, hidden), team.name)
        ]

    def _fail(self, team: Team, tokens: int, error: Failed) -> None:
        case = (tokens, self._stage.hidden)
        self._bench.results.fail(NAME, TIME, "ms", case, team.name, str(error))
        self._bench.complain(f"{team.name} fails at {tokens:,} tokens: {error}")


def floor(results: Results, series: Series) -> float | None:
    """Median of the bare WRITE in the same case."""
    return results.median(series.suite, series.measure, series.case, BARE.name)


def best_dynamo(results: Results, series: Series) -> float | None:
    """Median of Dynamo's best mode in the same case."""
    names = [contender.name for contender in DYNAMO]
    return results.best(series.suite, series.measure, series.case, names)


SUITE: Final = Suite(
    NAME,
    "One hand-off at a time",
    "From the tensor on the encode side to the contiguous tensor on the prefill side, bfloat16.",
    ("tokens", "hidden"),
    {"x best Dynamo": best_dynamo, "x bare WRITE": floor},
    run,
)
