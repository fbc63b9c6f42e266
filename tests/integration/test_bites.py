# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The tests of exact answers notice a single wrong row: here each embedding arrives with one."""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import DISTURBED, MODEL_NAME
from tests.support.exact import LOGPROB_TOLERANCE, MIN_MARGIN, assert_exact, logprobs_of
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork

DEPLOYMENT = DISTURBED

MAX_TOKENS = 16
QUESTION = "What is this?"


# Of a few pictures, those whose choice of tokens depends on the first row. Where it does not, the
# probabilities still do: that is why exact answers are compared by both.
@pytest.mark.parametrize(
    ("seed", "size"), [(8, (4, 4)), (13, (7, 6)), (20, (10, 9)), (45, (24, 17))]
)
def test_tokens_differ(stack: LocalStack, oracle: Oracle, seed: int, size: tuple[int, int]) -> None:
    image = patchwork(seed, *size)
    answer = _ask(stack, data_url(image))
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    assert expected.margin > MIN_MARGIN
    assert answer.ok
    assert answer.token_ids != expected.token_ids


@pytest.mark.parametrize(("seed", "size"), [(19, (10, 9)), (41, (24, 17))])
def test_probabilities_differ_even_where_tokens_do_not(
    stack: LocalStack, oracle: Oracle, seed: int, size: tuple[int, int]
) -> None:
    image = patchwork(seed, *size)
    answer = _ask(stack, data_url(image))
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    assert answer.token_ids == expected.token_ids
    distance = max(
        abs(got - right) for got, right in zip(logprobs_of(answer), expected.logprobs, strict=True)
    )
    assert distance > 10 * LOGPROB_TOLERANCE
    with pytest.raises(AssertionError):
        assert_exact(answer, expected)


def test_text_alone_is_still_exact(stack: LocalStack, oracle: Oracle) -> None:
    answer = ask(stack.base_url, MODEL_NAME, [], QUESTION, MAX_TOKENS, logprobs=True)
    assert_exact(answer, oracle.generate([], QUESTION, MAX_TOKENS))


def _ask(stack: LocalStack, url: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS, logprobs=True)
