# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Moments of a transfer at which encode workers stand still for as long as a test says.

What a fault hits would otherwise depend on how fast the machine is. The worker is the real one
(tests/support/held_encode_worker.py), and looks for a file of the moment's name in a folder that
its environment names; beside it, it leaves one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from examples.local_stack import LocalStack
from tests.support.worker_status import wait_until

FOLDER_ENV = "MM_RESUME_TEST_HOLDS"
ENCODE_MODULE = "tests.support.held_encode_worker"
POLL_S = 0.005
CAUGHT_DEADLINE_S = 60.0


class Moment(StrEnum):
    """Where a worker stands still."""

    IN_THE_TOWER = "in-the-tower"
    BETWEEN_ROUNDS = "between-rounds"
    """The first chunk is written, and no further one is posted."""


def arrive(moment: Moment) -> None:
    """Say that this process has come here."""
    with (_folder() / f"{moment}@{os.getpid()}").open("a") as visits:
        visits.write("1")


def is_held(moment: Moment) -> bool:
    """Whether this process is to stand still here."""
    return (_folder() / moment).exists()


def _folder() -> Path:
    return Path(os.environ[FOLDER_ENV])


class Hold:
    """A moment that is held."""

    def __init__(self, stack: LocalStack, moment: Moment) -> None:
        self._stack = stack
        self._moment = moment
        self._folder = Path(stack.environment[FOLDER_ENV])

    def begin(self) -> None:
        """Whoever comes to the moment waits from now on."""
        for arrival in self._arrivals():
            arrival.unlink()
        (self._folder / self._moment).touch()

    def end(self) -> None:
        """They go on."""
        (self._folder / self._moment).unlink()

    def caught(self) -> str:
        """Name of a worker that stands there, as soon as there is one."""
        assert wait_until(lambda: bool(self._arrived()), CAUGHT_DEADLINE_S), (
            f"no encode worker came to be {self._moment}"
        )
        return self._arrived()[0]

    @property
    def visits(self) -> int:
        """How often workers have come there since the beginning."""
        return sum(file.stat().st_size for file in self._arrivals())

    def _arrived(self) -> list[str]:
        pids = {int(file.name.partition("@")[2]) for file in self._arrivals()}
        return [process.name for process in self._stack.processes if process.pid in pids]

    def _arrivals(self) -> list[Path]:
        return list(self._folder.glob(f"{self._moment}@*"))


@contextmanager
def holding(stack: LocalStack, moment: Moment) -> Iterator[Hold]:
    """Hold a moment until the end of the block."""
    hold = Hold(stack, moment)
    hold.begin()
    try:
        yield hold
    finally:
        hold.end()
