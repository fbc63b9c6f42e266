# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Many hand-offs at once, from up to four writers to one receiver.

All embeddings of a burst exist from one moment on; it ends with the last tensor on the prefill
side. Ours has its default grants by then, as behind vision towers.
"""

from collections.abc import Sequence
from typing import Final

from benchmarks.bench import Bench, rotated, turn
from benchmarks.channel import Failed
from benchmarks.contenders import BARE, DYNAMO, OURS
from benchmarks.results import Case, Results, Series
from benchmarks.suites import Suite
from benchmarks.suites.lengths import best_dynamo, floor
from benchmarks.team import Burst, Team
from benchmarks.workload import HIDDEN, Setup, bytes_of

NAME: Final = "concurrency"
THROUGHPUT: Final = "throughput"
TIME: Final = "hand-off"
WAIT: Final = "wait for blocks"
UNFAIR: Final = "slowest writer / fastest"
TOKENS: Final = 1024
WRITERS: Final = 4
IN_FLIGHT: Final = (1, 4, 16, 64)
#: More at once is not asked of the others.
DYNAMO_MOST: Final = 16
REPEATS: Final = 12
QUICK_REPEATS: Final = 3
CONTENDERS: Final = (OURS, *DYNAMO, BARE)


async def run(bench: Bench) -> None:
    contenders = (OURS, BARE) if bench.quick else CONTENDERS
    async with bench.teams(contenders, WRITERS) as teams:
        each = max(IN_FLIGHT) // WRITERS
        setup = Setup(TOKENS, in_flight=each, writers=WRITERS, device=bench.device)
        ready = [team for team in teams if await _prepare(bench, team, setup)]
        with bench.progress(NAME, QUICK_REPEATS if bench.quick else REPEATS) as repeats:
            for number in repeats:
                for team in rotated(ready, number):
                    async with turn(team):
                        await _round(bench, team)


async def _prepare(bench: Bench, team: Team, setup: Setup) -> bool:
    async with turn(team):
        try:
            await team.start(setup)
        except Failed as error:
            for in_flight in _steps(bench, team):
                _fail(bench, team, in_flight, error)
            return False
        for in_flight in _steps(bench, team):
            try:
                await team.burst(TOKENS, in_flight, verify=True)
            except Failed as error:
                _fail(bench, team, in_flight, error)
        return True


async def _round(bench: Bench, team: Team) -> None:
    for in_flight in _steps(bench, team):
        try:
            if in_flight == 1:
                await team.burst(TOKENS, 1)  # wakes the processes up
            _record(bench, team, in_flight, await team.burst(TOKENS, in_flight))
        except Failed as error:
            _fail(bench, team, in_flight, error)


def _record(bench: Bench, team: Team, in_flight: int, burst: Burst) -> None:
    case, name, add = (in_flight,), team.name, bench.results.add
    ends = [[one.ended - burst.at for one in each] for each in burst.done]
    took = max(max(each) for each in ends)
    gigabytes = in_flight * bytes_of(TOKENS, HIDDEN) / 1e9
    add(NAME, THROUGHPUT, "GB/s", case, name, gigabytes / took)
    add(NAME, TIME, "ms", case, name, *(end * 1e3 for each in ends for end in each))
    if len(ends) > 1:
        slowest, fastest = max(map(max, ends)), min(map(max, ends))
        add(NAME, UNFAIR, "x", case, name, slowest / fastest)
    waits = [w for each in burst.done for one in each for w in one.details.get("buffer wait", ())]
    if waits:
        add(NAME, WAIT, "ms", case, name, *(wait * 1e3 for wait in waits))


def _steps(bench: Bench, team: Team) -> Sequence[int]:
    """How many at once are asked of a team; not those that it has failed at."""
    most = DYNAMO_MOST if team.contender in DYNAMO else max(IN_FLIGHT)

    def failed(case: Case) -> bool:
        return bench.results.failed(NAME, THROUGHPUT, case, team.name)

    return [n for n in IN_FLIGHT if n <= most and not failed((n,))]


def _fail(bench: Bench, team: Team, in_flight: int, error: Failed) -> None:
    bench.results.fail(NAME, THROUGHPUT, "GB/s", (in_flight,), team.name, str(error))
    bench.complain(f"{team.name} fails with {in_flight} at once: {error}")


def _of_throughput(results: Results, series: Series) -> float | None:
    return floor(results, series) if series.measure == THROUGHPUT else None


def _of_time(results: Results, series: Series) -> float | None:
    return best_dynamo(results, series) if series.measure == TIME else None


SUITE: Final = Suite(
    NAME,
    f"Hand-offs of {TOKENS:,} tokens at once, {WRITERS} writers",
    "From the moment when all embeddings exist. Throughput: of a burst, up to its last tensor.",
    ("at once",),
    {"x bare WRITE": _of_throughput, "x best Dynamo": _of_time},
    run,
)
