# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A pool of a single block on both sides still carries every picture, several at once (R4)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, ONE_BLOCK
from tests.support.exact import assert_exact
from tests.support.metrics import risen
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import status

DEPLOYMENT = ONE_BLOCK

BLOCK_SIZE = 16
MAX_TOKENS = 12
QUESTION = "What is this?"


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (20, 15)], ids=["one-block", "two", "nineteen"])
def test_every_size_is_exact(stack: LocalStack, oracle: Oracle, size: tuple[int, int]) -> None:
    image = patchwork(sum(size), *size)
    with risen(stack) as counts:
        answer = _ask(stack, [data_url(image)])
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert answer.engine_data is not None
    rounds = -(-num_tokens(image) // BLOCK_SIZE)
    assert answer.engine_data["mm_resume"]["rounds"] == rounds
    found = counts["prefill"]
    assert found["embedding_rounds_sum"] == rounds
    resumes = found.get("resumes_total", 0)
    assert found.get('buffer_wait_seconds_count{kind="resume"}', 0) == resumes
    # The first is certain: the block is granted, and empty. Later it may be back in time for a try.
    assert min(1, rounds - 1) <= resumes <= rounds - 1


def test_four_at_once_share_the_block(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(50 + i, *size) for i, size in enumerate([(4, 4), (9, 7), (12, 8), (3, 3)])]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [data_url(image)]), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)


def test_four_in_one_request_share_the_block(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(60 + i, *size) for i, size in enumerate([(6, 6), (4, 4), (10, 5), (4, 5)])]
    answer = _ask(stack, [data_url(image) for image in images])
    assert_exact(answer, oracle.generate(images, QUESTION, MAX_TOKENS))


def test_pools_have_one_block(stack: LocalStack) -> None:
    assert [status(stack, role)["pool"]["total"] for role in ("encode", "prefill")] == [1, 1]


def _ask(stack: LocalStack, urls: list[str]) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
