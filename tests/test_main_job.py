# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The main job on one real deployment: exact answers at three lengths, one fault, one refusal.

`make test` runs these tests and no others that start a deployment.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status

pytestmark = [pytest.mark.integration, pytest.mark.timeout(480)]

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
MAX_TOKENS = 8
ANSWER_DEADLINE_S = 90.0
#: Columns and rows of image tokens, and how many grants they take at least. A default grant has 32
#: tokens, the pool has 128.
LENGTHS = {"below-default": ((4, 4), 1), "above-default": ((7, 6), 2), "above-pool": ((15, 11), 2)}
NOT_AN_IMAGE = "data:image/png;base64," + base64.b64encode(b"not an image").decode("ascii")


@pytest.mark.parametrize("length", LENGTHS)
def test_an_image_of_any_length_is_exact(stack: LocalStack, oracle: Oracle, length: str) -> None:
    size, min_rounds = LENGTHS[length]
    image = patchwork(sum(size), *size)
    answer = _ask(stack, data_url(image))
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["rounds"] >= min_rounds


def test_a_killed_encode_worker_costs_no_request(stack: LocalStack, oracle: Oracle) -> None:
    """The request that the encode worker works on is answered by another one."""
    image = patchwork(803, 15, 11)
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        with holding(stack, Moment.IN_THE_TOWER) as hold:
            answer = thread.submit(_ask, stack, data_url(image))
            killed = hold.caught()
            stack.kill(killed)
        try:
            assert_exact(answer.result(ANSWER_DEADLINE_S), expected)
        finally:
            stack.restart(killed)
    assert status(stack, "processor")["totals"]["encode_retries"] > 0
    stack.wait_ready(READY_DEADLINE_S)


def test_what_is_not_an_image_is_refused(stack: LocalStack) -> None:
    answer = _ask(stack, NOT_AN_IMAGE)
    assert answer.status == 400
    assert "image 1" in answer.error_message


def _ask(stack: LocalStack, url: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS)
