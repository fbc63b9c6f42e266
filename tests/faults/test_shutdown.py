# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM drains: what is under way is answered, and a rolling restart loses no request."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.faults import encode_workers
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status, status_of, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
MAX_TOKENS = 12
SLOW = patchwork(700, 40, 40)  # 6,400 patches: a second or two in the tower, twelve pools
IMAGES = [patchwork(701 + i, *size) for i, size in enumerate([(4, 4), (9, 8), (12, 12)])]
EXIT_DEADLINE_S = 60.0
ANSWER_DEADLINE_S = 120.0


def test_rolling_restart_of_the_encode_workers_under_load(
    stack: LocalStack, oracle: Oracle
) -> None:
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in IMAGES]
    over = threading.Event()

    def ask_on(which: int) -> list[Answer]:
        answers = []
        while not over.is_set():
            answers.append(_ask(stack, which))
        return answers

    with ThreadPoolExecutor(len(IMAGES)) as threads:
        asked = [threads.submit(ask_on, which) for which in range(len(IMAGES))]
        try:
            for name in encode_workers(stack):
                assert stack.terminate(name, EXIT_DEADLINE_S) == 0
                stack.restart(name)
                stack.wait_ready(READY_DEADLINE_S)
                assert wait_until(lambda name=name: _served(stack, name) > 0, ANSWER_DEADLINE_S)
        finally:
            over.set()
        answers = [each.result(ANSWER_DEADLINE_S) for each in asked]
    print(f"answered during the restarts: {[len(each) for each in answers]}")
    for which, each in enumerate(answers):
        for answer in each:
            assert_exact(answer, expected[which])


def test_encode_worker_finishes_what_it_has_begun(stack: LocalStack, oracle: Oracle) -> None:
    expected = oracle.generate([SLOW], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        with holding(stack, Moment.IN_THE_TOWER) as hold:
            asked = thread.submit(_ask_slowly, stack)
            worker = hold.caught()
        retries = status(stack, "processor")["totals"]["encode_retries"]
        assert stack.terminate(worker, EXIT_DEADLINE_S) == 0
        answer = asked.result(ANSWER_DEADLINE_S)
    assert_exact(answer, expected)
    assert status(stack, "processor")["totals"]["encode_retries"] == retries, "it finished itself"
    stack.restart(worker)
    stack.wait_ready(READY_DEADLINE_S)


def test_prefill_worker_lets_embeddings_on_their_way_arrive(
    stack: LocalStack, oracle: Oracle
) -> None:
    expected = oracle.generate([SLOW], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        with holding(stack, Moment.IN_THE_TOWER) as hold:
            asked = thread.submit(_ask_slowly, stack)
            hold.caught()
        assert stack.terminate("prefill-0", EXIT_DEADLINE_S) == 0
        answer = asked.result(ANSWER_DEADLINE_S)
    assert_exact(answer, expected)
    stack.restart("prefill-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert wait_until(lambda: _ask(stack, 0).ok, ANSWER_DEADLINE_S)


def test_processor_finishes_what_it_has_begun(stack: LocalStack, oracle: Oracle) -> None:
    expected = oracle.generate([SLOW], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        with holding(stack, Moment.IN_THE_TOWER) as hold:
            asked = thread.submit(_ask_slowly, stack)
            hold.caught()
        assert stack.terminate("processor", EXIT_DEADLINE_S) == 0
        answer = asked.result(ANSWER_DEADLINE_S)
    assert_exact(answer, expected)
    stack.restart("processor")
    stack.wait_ready(READY_DEADLINE_S)


def _ask(stack: LocalStack, which: int) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(IMAGES[which])], QUESTION, MAX_TOKENS)


def _ask_slowly(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(SLOW)], QUESTION, MAX_TOKENS)


def _served(stack: LocalStack, name: str) -> int:
    return int(status_of(stack, name)["totals"]["transfers"])
