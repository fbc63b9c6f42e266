# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings stay in the encode pool: a picture that comes again is written from its blocks.

The engine keeps the KV of what it has seen, and would not look at a wrong embedding. So a picture
comes again behind another one, where its KV is of no use.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.colliding import colliding_pngs, png_url
from tests.support.deployments import MODEL_NAME, SMALL_POOL
from tests.support.exact import assert_exact
from tests.support.faults import asking
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import status, wait_until

DEPLOYMENT = SMALL_POOL

MAX_TOKENS = 12
QUESTION = "What is this?"
ONE_BLOCK = (4, 4)
FOUR_BLOCKS = (8, 8)
"""As many as may be kept of a pool of eight: the rest is for those that are staged."""
TOO_LARGE = (9, 8)
SEEN_DEADLINE_S = 30.0


def test_a_picture_that_comes_again_is_not_encoded_again(stack: LocalStack, oracle: Oracle) -> None:
    for size in (ONE_BLOCK, FOUR_BLOCKS):
        again = patchwork(850 + sum(size), *size)
        # Small: the pool has room for all three.
        first, second = (patchwork(850 + sum(size) + i, *ONE_BLOCK) for i in (1, 2))
        _check(stack, oracle, [again])
        before = _totals(stack)
        _check(stack, oracle, [first, again])
        _check(stack, oracle, [second, again])
        changes = _changes(stack, before)
        assert changes["encodes"] == 2, changes
        assert changes["cache_hits"] == 2


def test_what_does_not_fit_is_sent_all_the_same(stack: LocalStack, oracle: Oracle) -> None:
    image, other = (patchwork(872 + i, *TOO_LARGE) for i in range(2))
    before = _totals(stack)
    _check(stack, oracle, [image])
    _check(stack, oracle, [other, image])
    changes = _changes(stack, before)
    assert (changes["encodes"], changes["cache_hits"]) == (3, 0)


def test_blocks_are_given_up_for_others_and_nothing_is_mixed_up(
    stack: LocalStack, oracle: Oracle
) -> None:
    """Many more pictures than the pool holds, of sizes that do not fit into each other's blocks."""
    sizes = [ONE_BLOCK, (5, 5), (7, 6), FOUR_BLOCKS, TOO_LARGE]
    images = [patchwork(880 + i, *sizes[i % len(sizes)]) for i in range(10)]
    before = _totals(stack)
    pairs = [[images[i], images[(3 * i + 1) % 10]] for i in range(10)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda pair: _ask(stack, pair), pairs))
    for pair, answer in zip(pairs, answers, strict=True):
        assert_exact(answer, oracle.generate(pair, QUESTION, MAX_TOKENS))
    changes = _changes(stack, before)
    assert changes["cache_evictions"] > 0
    assert changes["encodes"] >= len(images)


def test_images_that_the_prefix_cache_would_take_for_one(stack: LocalStack, oracle: Oracle) -> None:
    """Anybody can make two files whose hashes meet in the 30 bits that SGLang looks at."""
    images = [patchwork(920 + i, *ONE_BLOCK) for i in range(2)]
    right = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    assert right[0].token_ids != right[1].token_ids, "one answer for both proves nothing"
    files = colliding_pngs(status(stack, "encode")["content_identity"], *images)
    moved = _moved(stack)
    for asked, is_cached in ((0, False), (1, False), (1, True), (0, True)):
        urls = [png_url(files[asked])]
        answer = ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
        assert_exact(answer, right[asked])
        assert (answer.cached_tokens > num_tokens(images[asked])) == is_cached
    assert _moved(stack) == moved + 1, "they did not meet"


def test_equal_pictures_at_once_are_encoded_once(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(900, *ONE_BLOCK)
    before = _totals(stack)
    _check(stack, oracle, [image] * 4)
    assert _changes(stack, before)["encodes"] == 1


def test_a_client_that_hangs_up_takes_nothing_from_the_others(
    stack: LocalStack, oracle: Oracle
) -> None:
    image = patchwork(910, *FOUR_BLOCKS)
    before = _totals(stack)
    with ThreadPoolExecutor(1) as thread:
        with asking(stack, [data_url(image)], QUESTION, MAX_TOKENS, count=3):
            answer = thread.submit(_ask, stack, [image])
            assert wait_until(
                lambda: _changes(stack, before)["transfers"] == 4, SEEN_DEADLINE_S, 0.001
            )
        assert_exact(answer.result(), oracle.generate([image], QUESTION, MAX_TOKENS))


def _check(stack: LocalStack, oracle: Oracle, images: list[Image.Image]) -> None:
    assert_exact(_ask(stack, images), oracle.generate(images, QUESTION, MAX_TOKENS))


def _ask(stack: LocalStack, images: list[Image.Image]) -> Answer:
    urls = [data_url(image) for image in images]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)


def _moved(stack: LocalStack) -> int:
    """Images that did not get the name that they wanted."""
    return int(status(stack, "prefill")["content_names"]["moved"])


def _totals(stack: LocalStack) -> dict[str, int]:
    """The plain counts."""
    totals: dict[str, Any] = status(stack, "encode")["totals"]
    return {name: value for name, value in totals.items() if isinstance(value, int)}


def _changes(stack: LocalStack, before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in _totals(stack).items()}
