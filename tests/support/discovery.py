# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the discovery of a running stack lists, and workers that it loses: each entry is a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.local_stack import LocalStack
from tests.support.faults import paused
from tests.support.worker_status import status_of, wait_until

LEASE_S = 10.0
LOST_DEADLINE_S = 40.0
"""Others look every few seconds for entries that have expired, and remove them."""
BACK_DEADLINE_S = 30.0


def listed(stack: LocalStack) -> dict[Path, float]:
    """Each instance and each model card, to the time at which its owner last kept it alive."""
    return entries(Path(stack.environment["DYN_FILE_KV"]))


def entries(folder: Path) -> dict[Path, float]:
    """The same of a discovery folder."""
    found: dict[Path, float] = {}
    for bucket in ("instances", "mdc"):
        for path in (folder / "v1" / bucket).glob("[!.]*"):
            try:
                found[path] = path.stat().st_mtime
            except FileNotFoundError:
                continue  # it has gone since
    return found


@contextmanager
def lost(stack: LocalStack, name: str) -> Iterator[None]:
    """A worker stands still, and the block begins when discovery has lost it; when it goes on, it
    is listed again, and no process is another one.
    """
    before, processes = listed(stack), stack.processes
    count = reregistrations(stack, name)
    with paused(stack, name):
        paused_at = time.monotonic()
        assert wait_until(
            lambda: _kinds_lost(stack, before) == {"instances", "mdc"}, LOST_DEADLINE_S
        )
        print(f"{name} was lost after {time.monotonic() - paused_at:.1f} s")
        yield
    went_on_at = time.monotonic()
    assert wait_until(lambda: set(listed(stack)) == set(before), BACK_DEADLINE_S)
    print(f"{name} was back after {time.monotonic() - went_on_at:.1f} s")
    assert wait_until(lambda: reregistrations(stack, name) > count, BACK_DEADLINE_S)
    assert stack.processes == processes


def reregistrations(stack: LocalStack, name: str) -> int:
    """How often that worker has put itself back."""
    return int(status_of(stack, name)["totals"]["reregistrations"])


def _kinds_lost(stack: LocalStack, before: dict[Path, float]) -> set[str]:
    return {path.parent.name for path in set(before) - set(listed(stack))}
