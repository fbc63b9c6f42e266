# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Our frontend: a refusal has its status and says when to come back; all else is as ever."""

from __future__ import annotations

import base64
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, png, request_body
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.faults import SEEN_DEADLINE_S, asking
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, status, statuses, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
MAX_TOKENS = 12
IMAGE = patchwork(700, 7, 6)
LONG_ANSWER = 1500
"""Tokens; seconds in the engine."""
HOME_DEADLINE_S = 10.0
EXIT_DEADLINE_S = 60.0
BODY_LIMIT = 45 * 2**20
"""Dynamo's default, which is ours too."""
AT_ONCE = 8
ROUNDS = 3

unary_and_stream = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@unary_and_stream
def test_answers_are_exact(stack: LocalStack, oracle: Oracle, stream: bool) -> None:
    answer = ask(stack.base_url, MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS, stream)
    assert_exact(answer, oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def test_tokens_come_one_by_one(stack: LocalStack) -> None:
    """The first is here while the engine works on the others."""
    with asking(stack, [], QUESTION, LONG_ANSWER) as (connection,):
        events = (line for line in connection.getresponse() if line.startswith(b"data: {"))
        assert b'"choices"' in next(events)
        assert b'"choices"' in next(events)
        assert status(stack, "prefill")["engine_requests"] == 1
    answer = ask(stack.base_url, MODEL_NAME, [], QUESTION, 200, stream=True, ignore_eos=True)
    assert answer.ok, answer.raw
    assert answer.num_chunks > 100


@unary_and_stream
def test_a_mistake_has_its_status(stack: LocalStack, stream: bool) -> None:
    answer = _post(stack, "data:image/png;base64,AAAA", stream)
    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert "send JPEG, PNG or WebP" in answer.json()["message"]
    assert "retry-after" not in answer.headers


@unary_and_stream
def test_hanging_up_ends_a_picture_in_the_tower(stack: LocalStack, stream: bool) -> None:
    with holding(stack, Moment.IN_THE_TOWER) as hold:
        with asking(stack, [data_url(IMAGE)], QUESTION, 1, stream=stream):
            hold.caught()
        assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)


@unary_and_stream
def test_hanging_up_ends_an_answer(stack: LocalStack, stream: bool) -> None:
    with asking(stack, [data_url(IMAGE)], QUESTION, LONG_ANSWER, stream=stream):
        assert wait_until(lambda: _is_in_engine(stack), SEEN_DEADLINE_S)
    assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)


def test_requests_of_one_id_are_strangers_to_each_other(stack: LocalStack, oracle: Oracle) -> None:
    """Also to everybody else: the worker that they are for stays in use."""
    expected = oracle.generate([IMAGE], QUESTION, MAX_TOKENS)
    ended = threading.Event()

    def named(_: int) -> Answer:
        return _ask(
            stack, {"x-dynamo-request-id": name, "x-dynamo-meta-mm-resume-request-id": name}
        )

    def others() -> list[Answer]:
        answers = [_ask(stack, {})]
        while not ended.is_set():
            answers.append(_ask(stack, {}))
        return answers

    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        bystander = threads.submit(others)
        try:
            answers = []
            for _ in range(ROUNDS):
                name = str(uuid4())
                answers += threads.map(named, range(AT_ONCE))
        finally:
            ended.set()
    for answer in [*answers, *bystander.result()]:
        assert_exact(answer, expected)


def test_a_body_that_is_let_in_passes_every_hop(stack: LocalStack, oracle: Oracle) -> None:
    """40 MiB are more than Dynamo's default for a message between two processes."""
    urls = [_heavy(IMAGE, size=10 * 2**20) for _ in range(3)]
    answer = ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS)
    assert 0.85 * BODY_LIMIT < sum(map(len, urls)) < BODY_LIMIT
    assert_exact(answer, oracle.generate([IMAGE] * 3, QUESTION, MAX_TOKENS))


@pytest.mark.parametrize("says_its_size", [True, False], ids=["length", "chunked"])
def test_a_body_that_is_not_let_in_is_told_the_limit(
    stack: LocalStack, says_its_size: bool
) -> None:
    body = bytes(BODY_LIMIT + 1)
    answer = httpx.post(
        f"{stack.base_url}/chat/completions",
        content=body if says_its_size else _pieces(body),
        trust_env=False,
        timeout=SEEN_DEADLINE_S,
    )
    assert answer.status_code == 413
    assert "DYN_HTTP_BODY_LIMIT_MB" in answer.json()["message"]


@unary_and_stream
def test_content_that_would_not_reach_the_model_is_refused(stack: LocalStack, stream: bool) -> None:
    body = request_body(MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS, stream)
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    body["messages"][0]["content"].insert(1, sound)
    answer = httpx.post(f"{stack.base_url}/chat/completions", json=body, trust_env=False)
    assert answer.status_code == 400
    assert "messages[0].content[1]: content of type 'input_audio'" in answer.json()["message"]


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
    with asking(stack, [data_url(IMAGE)], QUESTION, LONG_ANSWER) as (connection,):
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data:")
        assert stack.terminate("frontend", EXIT_DEADLINE_S) == 0
        assert answer.read().rstrip().endswith(b"data: [DONE]")
    stack.restart("frontend")
    stack.wait_ready(READY_DEADLINE_S)


def _ask(stack: LocalStack, headers: dict[str, str]) -> Answer:
    url = data_url(IMAGE)
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS, headers=headers)


def _heavy(image: Image.Image, size: int) -> str:
    """The picture as a data URL of a PNG with `size` bytes in a chunk that nobody reads."""
    file = png(image)
    kind, data = b"tEXt", b"x\0" + b"y" * size
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    end_of_header = 8 + 25
    heavy = file[:end_of_header] + chunk + file[end_of_header:]
    return f"data:image/png;base64,{base64.b64encode(heavy).decode()}"


def _pieces(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 2**20):
        yield body[start : start + 2**20]


def _post(stack: LocalStack, image_url: str, stream: bool) -> httpx.Response:
    body = request_body(MODEL_NAME, [image_url], QUESTION, MAX_TOKENS, stream)
    url = f"{stack.base_url}/chat/completions"
    return httpx.post(url, json=body, trust_env=False, timeout=SEEN_DEADLINE_S)


def _is_in_engine(stack: LocalStack) -> bool:
    return any(state["embeddings_offered"] > 0 for state in statuses(stack, "prefill"))
