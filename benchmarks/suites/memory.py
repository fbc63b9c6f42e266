# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Resident memory while transfers are in flight, and processor time while there are none.

Everything that is allocated in advance is used first, so that what comes on top is the transfers'.
The receiver keeps all embeddings of a burst until its end, as an engine that is busy would.
"""

import asyncio
from typing import Final

from benchmarks.bench import Bench, check, turn
from benchmarks.channel import Failed
from benchmarks.contenders import DYNAMO, OURS
from benchmarks.suites import Suite
from benchmarks.team import Team
from benchmarks.workload import HIDDEN, SETTINGS, Setup, bytes_of

NAME: Final = "memory"
AHEAD: Final = "taken in advance"
EXTRA: Final = "extra per transfer / its embedding"
IDLE: Final = "processor time while idle"
TOKENS: Final = 4096
IN_FLIGHT: Final = 8
#: Connects the agents.
FIRST_TOKENS: Final = 64
IDLE_S: Final = 10.0
QUICK_IDLE_S: Final = 2.0
#: Agents poll faster for a while after the last transfer.
SETTLE_S: Final = 1.0
ROLES: Final = ("receiver", "writer")
#: Of our own pool, as workers have it by default.
POOL_BYTES: Final = SETTINGS.pool_blocks * bytes_of(SETTINGS.block_size, HIDDEN)


async def run(bench: Bench) -> None:
    contenders = (OURS,) if bench.quick else (OURS, *DYNAMO)
    async with bench.teams(contenders) as teams:
        with bench.progress(NAME, len(teams)) as numbers:
            for number in numbers:
                team = teams[number]
                async with turn(team):
                    try:
                        await _measure(bench, team)
                    except Failed as error:
                        for role in ROLES:
                            bench.results.fail(NAME, EXTRA, "x", (role,), team.name, str(error))


async def _measure(bench: Bench, team: Team) -> None:
    setup = Setup(TOKENS, in_flight=IN_FLIGHT, device=bench.device)
    loaded = team.resident()
    await team.start(setup)
    await check(team, FIRST_TOKENS)
    await team.touch()
    before = team.resident()
    team.reset_peak()
    await team.burst(TOKENS, IN_FLIGHT, verify=True)
    peak = team.peak()
    embeddings = {"receiver": 0, "writer": setup.writer_bytes}
    for role in ROLES:
        ahead = before[role] - loaded[role] - embeddings[role]
        extra = (peak[role] - before[role]) / IN_FLIGHT / setup.embedding_bytes
        _add(bench, team, role, AHEAD, "MiB", ahead / 2**20)
        _add(bench, team, role, EXTRA, "x", extra)
    await _idle(bench, team)


async def _idle(bench: Bench, team: Team) -> None:
    duration = QUICK_IDLE_S if bench.quick else IDLE_S
    await asyncio.sleep(SETTLE_S)
    before = team.processor_seconds()
    await asyncio.sleep(duration)
    after = team.processor_seconds()
    for role in ROLES:
        used = (after[role] - before[role]) / duration
        _add(bench, team, role, IDLE, "% of a core", used * 100)


def _add(bench: Bench, team: Team, role: str, measure: str, unit: str, value: float) -> None:
    bench.results.add(NAME, measure, unit, (role,), team.name, value)


SUITE: Final = Suite(
    NAME,
    f"Memory with {IN_FLIGHT} transfers of {TOKENS:,} tokens in flight, and idle processor time",
    "In advance: what became resident between loading and the first transfer, embeddings aside; "
    f"ours is configured as {POOL_BYTES / 2**20:.0f} MiB, NIXL's own memory comes on top. "
    "Extra: the peak while transfers are in flight, less all that.",
    ("role",),
    {},
    run,
    is_wide=True,
)
