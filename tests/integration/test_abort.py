# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A request that is given up leaves nothing behind, wherever it was (R6, R16)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url, request_body
from tests.support.deployments import MODEL_NAME, SMALL_POOL
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import Status, leftovers, status, wait_until

DEPLOYMENT = SMALL_POOL

QUESTION = "What is this?"
SMALL = (4, 4)
SLOW = (40, 40)  # 6,400 patches: seconds in the tower, twelve pools' worth of tokens
SEEN_DEADLINE_S = 60.0
HOME_DEADLINE_S = 10.0
DEAD_DEADLINE_S = 60.0


def _is_encoding(stack: LocalStack) -> bool:
    return "encoding" in status(stack, "encode")["transfers"].values()


def _is_sending(stack: LocalStack) -> bool:
    states: Status = status(stack, "encode")["transfers"]
    return any(state in ("sending", "starved") for state in states.values())


def _is_in_engine(stack: LocalStack) -> bool:
    return status(stack, "prefill")["embeddings_offered"] > 0


@pytest.mark.parametrize(
    ("size", "seen", "max_tokens"),
    [
        pytest.param(SLOW, _is_encoding, 1, id="in-the-tower"),
        pytest.param(SLOW, _is_sending, 1, id="between-rounds"),
        pytest.param(SMALL, _is_in_engine, 1500, id="while-tokens-stream"),
    ],
)
def test_a_client_that_hangs_up_leaves_nothing(
    stack: LocalStack,
    oracle: Oracle,
    size: tuple[int, int],
    seen: Callable[[LocalStack], bool],
    max_tokens: int,
) -> None:
    with _asking(stack, patchwork(1, *size), max_tokens):
        assert wait_until(lambda: seen(stack), SEEN_DEADLINE_S), "the moment was never seen"
    assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)
    _assert_serves(stack, oracle)


def test_an_encode_worker_that_dies_costs_one_request(stack: LocalStack, oracle: Oracle) -> None:
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(_post(stack, patchwork(2, *SLOW), 1)))
    asking.start()
    assert wait_until(lambda: _is_encoding(stack), SEEN_DEADLINE_S)
    stack.kill("encode-0")
    asking.join(DEAD_DEADLINE_S)
    assert [answer.status_code for answer in answers] == [503]
    # The dead worker confirms nothing: its blocks stay away until it is known dead and drained.
    assert wait_until(lambda: _free_blocks(stack) == 8, DEAD_DEADLINE_S), status(stack, "prefill")
    stack.restart("encode-0")
    stack.wait_ready(DEAD_DEADLINE_S * 3)
    _assert_serves(stack, oracle)


def _free_blocks(stack: LocalStack) -> int:
    pool: dict[str, int] = status(stack, "prefill")["pool"]
    return pool["free"]


def _assert_serves(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(3, *SMALL)
    answer = ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION)
    assert_exact(answer, oracle.generate([image], QUESTION, 16))


@contextmanager
def _asking(stack: LocalStack, image: Image.Image, max_tokens: int) -> Iterator[None]:
    """A streaming request under way; leaving the block hangs up."""
    body = request_body(
        MODEL_NAME, [data_url(image)], QUESTION, max_tokens, stream=True, ignore_eos=True
    )
    address = urlsplit(stack.base_url)
    connection = HTTPConnection(address.netloc, timeout=SEEN_DEADLINE_S)
    connection.request(
        "POST",
        f"{address.path}/chat/completions",
        json.dumps(body),
        {"Content-Type": "application/json"},
    )
    try:
        yield
    finally:
        connection.close()


def _post(stack: LocalStack, image: Image.Image, max_tokens: int) -> httpx.Response:
    body = request_body(MODEL_NAME, [data_url(image)], QUESTION, max_tokens)
    url = f"{stack.base_url}/chat/completions"
    return httpx.post(url, json=body, trust_env=False, timeout=DEAD_DEADLINE_S * 2)
