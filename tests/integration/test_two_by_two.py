# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Two encode and two prefill workers share the work, and every answer stays exact."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from dynamo.sglang_mm_resume.core.lengths import ENOUGH
from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, TWO_BY_TWO
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import statuses

DEPLOYMENT = TWO_BY_TWO

MAX_TOKENS = 12
QUESTION = "What is this?"
SIZES = [(4, 4), (7, 6), (10, 9), (15, 11)]
AT_ONCE = 8


def test_pictures_at_once_are_exact_and_every_worker_has_served(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [patchwork(300 + i, *SIZES[i % len(SIZES)]) for i in range(2 * AT_ONCE)]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    before = {role: _served(stack, role) for role in ("encode", "prefill")}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [image]), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    for role, counts in before.items():
        served = [now - then for now, then in zip(_served(stack, role), counts, strict=True)]
        print(f"{role} workers served {served}")
        assert len(served) == 2
        assert all(served)
        assert sum(served) == len(images)


def test_pictures_of_one_request_meet_in_one_prefill_worker(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [patchwork(340 + i, *size) for i, size in enumerate(SIZES)]
    before = _served(stack, "prefill")
    answer = _ask(stack, images)
    assert_exact(answer, oracle.generate(images, QUESTION, MAX_TOKENS))
    served = [now - then for now, then in zip(_served(stack, "prefill"), before, strict=True)]
    assert sorted(served) == [0, len(images)]


def test_a_picture_goes_where_it_was_encoded_before(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(350, *SIZES[0])
    before = _encoded(stack)
    for i in range(6):
        other = patchwork(351 + i, *SIZES[0])  # behind another one, its KV is of no use
        answer = _ask(stack, [other, image])
        assert_exact(answer, oracle.generate([other, image], QUESTION, MAX_TOKENS))
    assert _encoded(stack) - before == 7


def test_default_grants_follow_the_lengths(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(360 + i, *SIZES[3]) for i in range(4)]
    expected = oracle.generate(images, QUESTION, MAX_TOKENS)
    for _ in range(2 * ENOUGH // len(images) + 2):
        assert_exact(_ask(stack, images), expected)
    # An eighth of the pool, at most; two blocks were configured.
    assert [state["default_blocks"] for state in statuses(stack, "prefill")] == [1, 1]


def _encoded(stack: LocalStack) -> int:
    return sum(state["totals"]["encodes"] for state in statuses(stack, "encode"))


def _served(stack: LocalStack, role: str) -> list[int]:
    return [state["totals"]["transfers"] for state in statuses(stack, role)]


def _ask(stack: LocalStack, images: list[Image.Image]) -> Answer:
    urls = [data_url(image) for image in images]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
