# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How much memory the processes of a stack take, now and at the most, as the kernel counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.local_stack import LocalStack


@contextmanager
def bounded_memory(stack: LocalStack, role: str, stays_mib: int, peak_mib: int) -> Iterator[None]:
    """Within the block, processes of a role neither end nor grow beyond these figures."""
    before = {pid: reset_peak(pid) for pid in _pids(stack, role)}
    yield
    assert _pids(stack, role) == list(before)
    for pid, start in before.items():
        stays, peak = memory_mib(pid) - start, peak_mib_of(pid) - start
        print(f"{role} worker of {start} MiB: {stays:+} MiB, at its peak {peak:+} MiB")
        assert stays < stays_mib
        assert peak < peak_mib


def memory_mib(pid: int) -> int:
    """What a process has in memory now."""
    return _mib(pid, "VmRSS")


def peak_mib_of(pid: int) -> int:
    """The most that it had since `reset_peak`."""
    return _mib(pid, "VmHWM")


def reset_peak(pid: int) -> int:
    """Let the peak begin anew, from what is returned."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory_mib(pid)


def _pids(stack: LocalStack, role: str) -> list[int]:
    return [process.pid for process in stack.processes if process.name.startswith(role)]


def _mib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) // 1024
