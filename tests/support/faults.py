# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that are under way when something happens, and what must be left of them: nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url, request_body
from tests.support.deployments import MODEL_NAME
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, wait_until

SEEN_DEADLINE_S = 60.0
_PICTURE = patchwork(830, 4, 4)


def encode_workers(stack: LocalStack) -> list[str]:
    """Their names."""
    return [name for name in stack.worker_urls if name.startswith("encode")]


def home_after(stack: LocalStack, since: float, deadline_s: float, *names: str) -> None:
    """Nothing is left on these workers, or on all; prints how long that took."""
    assert wait_until(lambda: not leftovers(stack, *names), deadline_s), leftovers(stack, *names)
    print(f"all home after {time.monotonic() - since:.2f} s")


def answers_again(stack: LocalStack) -> None:
    """Wait for an answer to a picture: who stood still is asked again only after it has answered
    a probe of the processor, up to a second or two after it went on.
    """
    urls = [data_url(_PICTURE)]
    assert wait_until(lambda: ask(stack.base_url, MODEL_NAME, urls, "?", 1).ok, SEEN_DEADLINE_S)


@contextmanager
def paused(stack: LocalStack, name: str) -> Iterator[float]:
    """A process stands still from the time that this gives, until the end of the block."""
    stack.pause(name)
    try:
        yield time.monotonic()
    finally:
        stack.unpause(name)


@contextmanager
def asking(
    stack: LocalStack,
    urls: Sequence[str],
    question: str,
    max_tokens: int,
    count: int = 1,
    stream: bool = True,
) -> Iterator[list[HTTPConnection]]:
    """Requests under way, all the same, of that many tokens; leaving the block hangs up."""
    body = request_body(MODEL_NAME, urls, question, max_tokens, stream, ignore_eos=True)
    address = urlsplit(stack.base_url)
    path, headers = f"{address.path}/chat/completions", {"Content-Type": "application/json"}
    connections = [HTTPConnection(address.netloc, timeout=SEEN_DEADLINE_S) for _ in range(count)]
    with ExitStack() as on_exit:
        for connection in connections:
            on_exit.callback(connection.close)
            connection.request("POST", path, json.dumps(body), headers)
        yield connections
