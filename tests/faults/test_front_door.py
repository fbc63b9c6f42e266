# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Our frontend: a refusal has its status and says when to come back; all else is as ever."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url, request_body
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, statuses, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
MAX_TOKENS = 12
IMAGE = patchwork(700, 7, 6)
SLOW_IMAGE = patchwork(701, 40, 40)
"""6,400 patches: seconds in the tower, twelve pools' worth of tokens."""
LONG_ANSWER = 1500
"""Tokens; seconds in the engine."""
HOME_DEADLINE_S = 10.0
SEEN_DEADLINE_S = 60.0
EXIT_DEADLINE_S = 60.0

unary_and_stream = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@unary_and_stream
def test_answers_are_exact(stack: LocalStack, oracle: Oracle, stream: bool) -> None:
    answer = ask(stack.base_url, MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS, stream)
    assert_exact(answer, oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def test_tokens_come_one_by_one(stack: LocalStack) -> None:
    answer = ask(stack.base_url, MODEL_NAME, [], QUESTION, 200, stream=True, ignore_eos=True)
    assert answer.ok, answer.raw
    assert answer.first_token_s is not None
    print(f"first of {answer.num_chunks}: {answer.first_token_s:.3f} s, {answer.total_s:.3f} s")
    assert answer.num_chunks > 100
    assert answer.first_token_s < answer.total_s / 2


@unary_and_stream
def test_a_mistake_has_its_status(stack: LocalStack, stream: bool) -> None:
    answer = _post(stack, "data:image/png;base64,AAAA", stream)
    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert "send JPEG, PNG or WebP" in answer.json()["message"]
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("max_tokens", [1, LONG_ANSWER], ids=["in-the-tower", "in-the-engine"])
@unary_and_stream
def test_hanging_up_ends_the_request(stack: LocalStack, max_tokens: int, stream: bool) -> None:
    image, seen = (SLOW_IMAGE, _is_encoding) if max_tokens == 1 else (IMAGE, _is_in_engine)
    connection = _begin(stack, image, max_tokens, stream)
    try:
        assert wait_until(lambda: seen(stack), SEEN_DEADLINE_S), "the moment was never seen"
    finally:
        connection.close()
    assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)


def test_unavailable_says_when_to_come_back(stack: LocalStack) -> None:
    names = ["encode-0", "encode-1"]
    for name in names:
        assert stack.terminate(name, EXIT_DEADLINE_S) == 0
    try:
        answers = [_post(stack, data_url(IMAGE), stream) for stream in (False, True)]
    finally:
        for name in names:
            stack.restart(name)
        stack.wait_ready(READY_DEADLINE_S)
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["code"] == 503


def test_a_stream_under_way_ends_before_the_frontend(stack: LocalStack) -> None:
    connection = _begin(stack, IMAGE, LONG_ANSWER, stream=True)
    try:
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data:")
        assert stack.terminate("frontend", EXIT_DEADLINE_S) == 0
        assert answer.read().rstrip().endswith(b"data: [DONE]")
    finally:
        connection.close()
        stack.restart("frontend")
        stack.wait_ready(READY_DEADLINE_S)


def _post(stack: LocalStack, image_url: str, stream: bool) -> httpx.Response:
    body = request_body(MODEL_NAME, [image_url], QUESTION, MAX_TOKENS, stream)
    url = f"{stack.base_url}/chat/completions"
    return httpx.post(url, json=body, trust_env=False, timeout=SEEN_DEADLINE_S)


def _begin(stack: LocalStack, image: Image.Image, max_tokens: int, stream: bool) -> HTTPConnection:
    """A connection with a request under way; closing it hangs up."""
    body = request_body(
        MODEL_NAME, [data_url(image)], QUESTION, max_tokens, stream, ignore_eos=True
    )
    address = urlsplit(stack.base_url)
    connection = HTTPConnection(address.netloc, timeout=SEEN_DEADLINE_S)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", f"{address.path}/chat/completions", json.dumps(body), headers)
    return connection


def _is_encoding(stack: LocalStack) -> bool:
    return any("encoding" in state["transfers"].values() for state in statuses(stack, "encode"))


def _is_in_engine(stack: LocalStack) -> bool:
    return any(state["embeddings_offered"] > 0 for state in statuses(stack, "prefill"))
