# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of a stack, with all of their children: none of them may end."""

from __future__ import annotations

import psutil

from examples.local_stack import LocalStack

Family = dict[str, list[psutil.Process]]


class Watch:
    """Remembers who runs; a process that took the place of another is not the same."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._families: Family = {}
        self.begin()

    def begin(self) -> None:
        """From now on, those that run now are the ones to be watched."""
        self._families = {p.name: _family(p.pid) for p in self._stack.processes}

    def dead(self) -> list[str]:
        """Names of those that have lost a process, or ended."""
        return [
            name
            for name, family in self._families.items()
            if not all(_is_alive(process) for process in family)
        ]


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
