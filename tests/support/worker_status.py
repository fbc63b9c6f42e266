# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the workers of a stack say about themselves, and whether anything is left of a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from examples.local_stack import LocalStack

Status = dict[str, Any]

# Role to the figures that are nothing (0 or empty) when no request is under way.
_IDLE = {
    "processor": ("requests", "tasks"),
    "encode": ("transfers", "tasks"),
    "prefill": (
        *("transfers", "waiting", "assembled_tokens"),
        *("embeddings_offered", "engine_requests", "tasks"),
    ),
    "decode": ("embeddings_offered", "engine_requests"),
}
_TIMEOUT_S = 10.0
_POLL_S = 0.05


def get(url: str) -> httpx.Response:
    """A GET that goes through no proxy."""
    return httpx.get(url, trust_env=False, timeout=_TIMEOUT_S)


def statuses(stack: LocalStack, role: str) -> list[Status]:
    """The state of every worker of a role."""
    return [status_at(url) for url in stack.system_urls[role]]


def status(stack: LocalStack, role: str) -> Status:
    """The state of the only worker of a role."""
    (only,) = statuses(stack, role)
    return only


def status_of(stack: LocalStack, name: str) -> Status:
    """The state of one worker."""
    return status_at(stack.worker_urls[name])


def leftovers(stack: LocalStack, *names: str) -> list[str]:
    """Everything that requests have left behind, one line each; of these workers, or of all that
    run.
    """
    running = [process.name for process in stack.processes if process.name in stack.worker_urls]
    return [
        f"{name}: {line}"
        for name in names or running
        for line in _leftovers(name.partition("-")[0], status_of(stack, name))
    ]


def wait_until(condition: Callable[[], bool], deadline_s: float, poll_s: float = _POLL_S) -> bool:
    """Poll until the condition holds; False when it did not in time."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(poll_s)
    return True


def status_at(url: str) -> Status:
    """The state of the worker with this system server."""
    answer = httpx.post(
        f"{url}/engine/mm_resume/status", json={}, trust_env=False, timeout=_TIMEOUT_S
    )
    answer.raise_for_status()
    state: Status = answer.json()
    return state


def _leftovers(role: str, state: Status) -> Iterator[str]:
    for name in _IDLE[role]:
        if state[name]:
            yield f"{name} is {state[name]}"
    if "pool" not in state:
        return
    pool = state["pool"]
    if pool["free"] + pool.get("cached", 0) != pool["total"]:
        yield f"not all blocks are free: {pool}"
