# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that are under way when something happens, and what must be left of them: nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

from examples.local_stack import LocalStack
from tests.support.client import request_body
from tests.support.deployments import MODEL_NAME
from tests.support.worker_status import leftovers, status_of, wait_until

# States of a transfer on its encode worker.
IN_THE_TOWER = ("encoding",)
BETWEEN_ROUNDS = ("sending", "starved")

SEEN_DEADLINE_S = 60.0


def encode_workers(stack: LocalStack) -> list[str]:
    """Their names."""
    return [name for name in stack.worker_urls if name.startswith("encode")]


def encode_worker_in(
    stack: LocalStack, states: Collection[str], over: Callable[[], bool] = lambda: False
) -> str | None:
    """The encode worker of a transfer in one of these states, as soon as there is one.

    None if `over` comes first: all the rounds of a picture take a tenth of a second or two.
    """
    found: list[str] = []

    def look() -> bool:
        found[:] = [
            name
            for name in encode_workers(stack)
            if set(status_of(stack, name)["transfers"].values()) & set(states)
        ]
        return bool(found) or over()

    assert wait_until(look, SEEN_DEADLINE_S, poll_s=0.005), f"never {' or '.join(states)}"
    return found[0] if found else None


def home_after(stack: LocalStack, since: float, deadline_s: float, *names: str) -> None:
    """Nothing is left on these workers, or on all; prints how long that took."""
    assert wait_until(lambda: not leftovers(stack, *names), deadline_s), leftovers(stack, *names)
    print(f"all home after {time.monotonic() - since:.2f} s")


@contextmanager
def asking(
    stack: LocalStack, urls: Sequence[str], question: str, max_tokens: int, count: int = 1
) -> Iterator[None]:
    """Streaming requests under way, all the same; leaving the block hangs up."""
    body = request_body(MODEL_NAME, urls, question, max_tokens, stream=True, ignore_eos=True)
    address = urlsplit(stack.base_url)
    with ExitStack() as connections:
        for _ in range(count):
            connection = HTTPConnection(address.netloc, timeout=SEEN_DEADLINE_S)
            connections.callback(connection.close)
            connection.request(
                "POST",
                f"{address.path}/chat/completions",
                json.dumps(body),
                {"Content-Type": "application/json"},
            )
        yield
