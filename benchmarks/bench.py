# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: what its suites share."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.channel import Failed
from benchmarks.contenders import Contender
from benchmarks.results import Results
from benchmarks.team import Team
from benchmarks.workload import Order

#: Where there is no terminal, progress is a line for every tenth of a suite.
LINES: Final = 10


class Bench:
    """Runs contenders for suites and collects what they measure."""

    def __init__(
        self, console: Console, only: Sequence[str], quick: bool, device: str = "cpu"
    ) -> None:
        """`only`: names of contenders; empty for all. `quick`: a minute for everything."""
        self.results = Results()
        self.console = console
        self.quick = quick
        self.device = device
        self.dead: dict[str, str] = {}
        """Contenders that did not start, and why."""
        self._only = only

    @asynccontextmanager
    async def teams(
        self, contenders: Sequence[Contender], num_writers: int = 1
    ) -> AsyncIterator[list[Team]]:
        """Loaded and paused; those that do not load are told and left out. All end with this."""
        wanted = [c for c in contenders if not self._only or c.name in self._only]
        teams = [Team(contender, num_writers) for contender in self._that_fit(wanted)]
        try:
            for team in teams:
                team.spawn()
            yield [team for team in teams if await self._open(team)]
        finally:
            for team in teams:
                await team.stop()

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Iterator[int]]:
        """Numbers below `total`, shown as a bar; as a few lines where there is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, disable=not terminal) as bar:
            task = bar.add_task(label, total=total)
            began = time.monotonic()

            def numbers() -> Iterator[int]:
                for number in range(total):
                    if not terminal and number * LINES // total != (number - 1) * LINES // total:
                        seconds = time.monotonic() - began
                        self.console.print(f"{label}: {number + 1} of {total}, {seconds:.0f} s")
                    yield number
                    bar.advance(task)

            yield numbers()

    def complain(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _that_fit(self, contenders: Sequence[Contender]) -> list[Contender]:
        """Those that have memory beside each other; modest ones come first."""
        left = psutil.virtual_memory().available / 2**30
        fitting = set()
        for contender in sorted(contenders, key=lambda contender: contender.needs_gib):
            if contender.needs_gib <= left:
                left -= contender.needs_gib
                fitting.add(contender)
            else:
                needs = f"needs {contender.needs_gib:g} GiB of memory"
                self._lose(contender.name, f"{needs}, {left:.1f} GiB are left")
        return [contender for contender in contenders if contender in fitting]

    async def _open(self, team: Team) -> bool:
        try:
            await team.open()
        except Failed as error:
            self._lose(team.name, str(error))
            return False
        team.pause()
        return True

    def _lose(self, name: str, why: str) -> None:
        self.dead[name] = why
        self.complain(f"{name} does not start: {why}")


def rotated(teams: Sequence[Team], number: int) -> list[Team]:
    """Nobody is always the one that follows the same other."""
    first = number % len(teams) if teams else 0
    return [*teams[first:], *teams[:first]]


@asynccontextmanager
async def turn(team: Team) -> AsyncIterator[None]:
    """The one whose turn it is runs."""
    team.resume()
    try:
        yield
    finally:
        team.pause()


async def warm_up(team: Team, tokens: int) -> None:
    """One hand-off that nobody measures wakes the processes up. Raises `Failed`."""
    await team.hand_off(Order(tokens, shape=team.contender.shape))


async def check(team: Team, tokens: int) -> None:
    """One hand-off that is compared byte by byte. Raises `Failed`."""
    await team.hand_off(Order(tokens, shape=team.contender.shape, verify=True))
