# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A worker that is lost in the middle of an answer: the client gets all of it, each token once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from examples.local_stack import LocalStack
from tests.support.another_processor import another_processor
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import COMPATIBILITY, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import LOGPROB_TOLERANCE, assert_exact, logprobs_of
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import patchwork
from tests.support.worker_status import Status, status, status_at, status_of, wait_until

DEPLOYMENT = COMPATIBILITY

QUESTION = "What is this?"
IMAGE = patchwork(1206, 7, 6)
MAX_TOKENS = 250
"""The answer ends by itself after more than 200, which take seconds."""
PREFILL = ("prefill-0", "prefill-1")
SEEN_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> OracleAnswer:
    return oracle.generate([IMAGE], QUESTION, MAX_TOKENS)


def test_a_hung_prefill_worker(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: OracleAnswer
) -> None:
    """What it still says when it goes on is not heard."""
    before = _continued(stack)
    answering = _streams(stack, threads, [stack.worker_urls["processor"]])
    name = _busy(stack)
    stack.pause(name)
    try:
        assert_exact(answering.result(ANSWER_DEADLINE_S), expected)
    finally:
        stack.unpause(name)
    assert _continued(stack) == before + 1


def test_a_killed_prefill_worker(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: OracleAnswer
) -> None:
    before = _continued(stack)
    answering = _streams(stack, threads, [stack.worker_urls["processor"]])
    name = _busy(stack)
    stack.kill(name)
    try:
        assert_exact(answering.result(ANSWER_DEADLINE_S), expected)
        assert _continued(stack) == before + 1
    finally:
        stack.restart(name)
        stack.wait_ready(READY_DEADLINE_S)


def test_a_killed_processor(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: OracleAnswer
) -> None:
    """Dynamo's frontend asks another one (`--migration-limit`), for which the prompt ends with what
    was answered: that is what `usage` then has as the prompt.
    """
    with another_processor(stack) as (second, second_url):
        answering = _streams(stack, threads, [stack.worker_urls["processor"], second_url])
        if status_at(second_url)["requests"]:
            second.kill()
        else:
            stack.kill("processor")
            stack.restart("processor")
        answer = answering.result(ANSWER_DEADLINE_S)
        assert answer.ok, answer.raw[-1:]
        assert answer.token_ids == expected.token_ids
        assert logprobs_of(answer) == pytest.approx(expected.logprobs, abs=LOGPROB_TOLERANCE)
        assert answer.usage is not None
        assert answer.usage["completion_tokens"] == len(expected.token_ids)
        num_before = answer.usage["prompt_tokens"] - expected.prompt_tokens
        assert 0 < num_before < len(expected.token_ids)
        stack.wait_ready(READY_DEADLINE_S)


def _streams(
    stack: LocalStack, threads: ThreadPoolExecutor, processors: Sequence[str]
) -> Future[Answer]:
    """An answer of which the client has the first tokens."""

    def begun() -> int:
        return sum(_first_tokens(status_at(url)) for url in processors)

    before = begun()
    urls = [data_url(IMAGE)]
    answering = threads.submit(
        ask, stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, stream=True, logprobs=True
    )
    assert wait_until(lambda: begun() > before, SEEN_DEADLINE_S)
    assert not answering.done(), "it was too short"
    return answering


def _busy(stack: LocalStack) -> str:
    """The prefill worker that answers."""
    (name,) = [name for name in PREFILL if status_of(stack, name)["engine_requests"]]
    return name


def _continued(stack: LocalStack) -> int:
    return int(status(stack, "processor")["totals"]["answers_continued"])


def _first_tokens(state: Status) -> int:
    return sum(state["totals"]["first_token_seconds"]["yes"]["counts"])
