# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Hundreds of pictures in one request, allowed by the operator: exact, or too long; bounded."""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MANY_IMAGES, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.footprint import bounded_memory
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork

DEPLOYMENT = MANY_IMAGES

QUESTION = "What is this?"
MAX_TOKENS = 6
TOKENS_EACH = 64  # 224 pixels square
FITTING = 100
# Nothing of a picture stays, but the C library keeps freed memory for the next one.
MAX_GROWTH_MIB = 500
REFUSED_WITHIN_S = 30.0

PICTURES = [patchwork(seed, 8, 8) for seed in range(FITTING)]
URLS = [data_url(picture) for picture in PICTURES]


def test_pictures_are_of_224_pixels() -> None:
    assert PICTURES[0].size == (224, 224)
    assert num_tokens(PICTURES[0]) == TOKENS_EACH


def test_a_hundred_are_served_exactly(stack: LocalStack, oracle: Oracle) -> None:
    expected = oracle.generate(PICTURES, QUESTION, MAX_TOKENS)
    with bounded_memory(stack, "encode", MAX_GROWTH_MIB, MAX_GROWTH_MIB):
        answer = _ask(stack, FITTING)
    print(f"{FITTING} pictures: {answer.total_s:.1f} s")
    assert_exact(answer, expected)


@pytest.mark.parametrize("count", [300, 500])
def test_more_than_the_context_are_refused(stack: LocalStack, count: int) -> None:
    with bounded_memory(stack, "encode", MAX_GROWTH_MIB, MAX_GROWTH_MIB):
        answer = _ask(stack, count)
    print(f"{count} pictures: {answer.total_s:.1f} s, {answer.error_message}")
    assert answer.status == 400, answer.raw
    assert "fewer or smaller pictures" in answer.error_message
    assert answer.total_s < REFUSED_WITHIN_S


def _ask(stack: LocalStack, count: int) -> Answer:
    urls = [URLS[index % FITTING] for index in range(count)]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS)
