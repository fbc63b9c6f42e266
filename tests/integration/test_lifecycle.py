# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers come and go: what the frontend lists, what health says, and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import LIFECYCLE, MODEL_NAME, READY_DEADLINE_S, Keeper
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import get, status, wait_until

DEPLOYMENT = LIFECYCLE

EXIT_DEADLINE_S = 60.0
NOTICE_DEADLINE_S = 30.0
MAX_TOKENS = 12
QUESTION = "What is this?"
IMAGE = patchwork(7, 7, 6)
SLOW_IMAGE = patchwork(8, 40, 40)
"""6,400 patches: seconds in the tower, twelve pools' worth of tokens."""
SEEN_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 120.0


def test_listed_only_when_every_worker_is_live(keeper: Keeper) -> None:
    stack = keeper.start(LIFECYCLE)
    stack.kill("encode-0")
    assert wait_until(lambda: _is_healthy(stack, "prefill"), READY_DEADLINE_S)
    assert wait_until(lambda: _frontend_answers(stack), NOTICE_DEADLINE_S)
    assert not _is_listed(stack)
    assert not _is_healthy(stack, "processor")
    assert _ask(stack, with_image=False).status in (404, 503)
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert _is_listed(stack)
    assert _ask(stack).ok


@pytest.mark.parametrize("path", ["health", "live"])
def test_healthy_once_ready(stack: LocalStack, path: str) -> None:
    for urls in stack.system_urls.values():
        assert [get(f"{url}/{path}").status_code for url in urls] == [200]


@pytest.mark.nightly
def test_encode_worker_ends_and_comes_back(stack: LocalStack, oracle: Oracle) -> None:
    assert stack.terminate("encode-0", EXIT_DEADLINE_S) == 0
    assert wait_until(lambda: _ask(stack).status == 503, NOTICE_DEADLINE_S)
    assert _ask(stack, with_image=False).ok, "text needs no encode worker"
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert wait_until(lambda: _ask(stack).ok, NOTICE_DEADLINE_S)
    assert_exact(_ask(stack), oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def test_encode_worker_ends_with_a_request_in_flight(stack: LocalStack) -> None:
    with _comes_back(stack, "encode-0"), ThreadPoolExecutor(1) as thread:
        asked = thread.submit(_ask_slowly, stack)
        assert wait_until(lambda: _is_encoding(stack), SEEN_DEADLINE_S)
        assert stack.terminate("encode-0", EXIT_DEADLINE_S) == 0
        answer = asked.result(ANSWER_DEADLINE_S)
    print(f"status {answer.status} after {answer.total_s:.1f} s: {answer.error_message}")
    assert answer.ok or answer.status == 503, answer.raw


@pytest.mark.nightly
def test_prefill_worker_ends_and_comes_back(stack: LocalStack, oracle: Oracle) -> None:
    assert stack.terminate("prefill-0", EXIT_DEADLINE_S) == 0
    assert wait_until(lambda: not _is_listed(stack), NOTICE_DEADLINE_S)
    assert _ask(stack).status in (404, 503)
    stack.restart("prefill-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert wait_until(lambda: _ask(stack).ok, NOTICE_DEADLINE_S)
    assert_exact(_ask(stack), oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


@pytest.mark.nightly
def test_processor_ends_and_comes_back(stack: LocalStack, oracle: Oracle) -> None:
    assert stack.terminate("processor", EXIT_DEADLINE_S) == 0
    assert wait_until(lambda: not _is_listed(stack), NOTICE_DEADLINE_S)
    stack.restart("processor")
    stack.wait_ready(READY_DEADLINE_S)
    assert wait_until(lambda: _ask(stack).ok, NOTICE_DEADLINE_S)
    assert_exact(_ask(stack), oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def _ask(stack: LocalStack, with_image: bool = True) -> Answer:
    images = [data_url(IMAGE)] if with_image else []
    return ask(stack.base_url, MODEL_NAME, images, QUESTION, MAX_TOKENS)


def _ask_slowly(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(SLOW_IMAGE)], QUESTION, MAX_TOKENS)


@contextmanager
def _comes_back(stack: LocalStack, name: str) -> Iterator[None]:
    """Whatever becomes of a worker in the block, it serves afterwards."""
    try:
        yield
    finally:
        stack.restart(name)
        stack.wait_ready(READY_DEADLINE_S)
    assert wait_until(lambda: _ask(stack).ok, NOTICE_DEADLINE_S)


def _is_encoding(stack: LocalStack) -> bool:
    return "encoding" in status(stack, "encode")["transfers"].values()


def _is_listed(stack: LocalStack) -> bool:
    models = get(f"{stack.base_url}/models").json()["data"]
    return MODEL_NAME in [model["id"] for model in models]


def _frontend_answers(stack: LocalStack) -> bool:
    try:
        return get(f"{stack.base_url}/models").status_code == 200
    except httpx.TransportError:
        return False


def _is_healthy(stack: LocalStack, role: str) -> bool:
    try:
        return all(get(f"{url}/health").status_code == 200 for url in stack.system_urls[role])
    except httpx.TransportError:
        return False
