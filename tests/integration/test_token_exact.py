# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Over HTTP, greedy: the answer to pictures of every size is transformers' own, token by token.

The pools are small so that all sizes are cheap: 8 blocks of 16 tokens, 2 blocks by default.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, SMALL_POOL
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.web import Page, serve
from tests.support.worker_status import status

DEPLOYMENT = SMALL_POOL

MAX_TOKENS = 16
TOKEN_BYTES = 128 * 4  # hidden width, float32
QUESTION = "What is this?"

# Columns and rows of image tokens, and the grants that carry them. Up to two are certain; further
# ones depend on what is free at that moment, but no grant is larger than the pool's 128 tokens.
BELOW_DEFAULT = (4, 4)
WHOLE_DEFAULT = (8, 4)
ABOVE_DEFAULT = (7, 6)
ABOVE_HALF_POOL = (10, 9)
WHOLE_POOL = (16, 8)
ABOVE_POOL = (15, 11)
MANY_POOLS = (24, 17)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("size", "min_rounds", "max_rounds"),
    [
        pytest.param(BELOW_DEFAULT, 1, 1, id="below-default"),
        pytest.param(WHOLE_DEFAULT, 1, 1, id="whole-default"),
        pytest.param(ABOVE_DEFAULT, 2, 2, id="above-default"),
        pytest.param(ABOVE_HALF_POOL, 2, 3, id="above-half-pool"),
        pytest.param(WHOLE_POOL, 2, 8, id="whole-pool"),
        pytest.param(ABOVE_POOL, 2, 11, id="above-pool"),
        pytest.param(MANY_POOLS, 4, 26, id="many-pools"),
    ],
)
def test_picture_of_any_size(
    stack: LocalStack,
    oracle: Oracle,
    size: tuple[int, int],
    min_rounds: int,
    max_rounds: int,
    stream: bool,
) -> None:
    image = patchwork(sum(size) + stream, *size)
    answer = _ask(stack, [image], stream=stream)
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert len(answer.logprobs) == len(answer.token_ids)
    moved = _moved(answer)
    assert moved["image_tokens"] == num_tokens(image)
    assert moved["bytes"] == num_tokens(image) * TOKEN_BYTES
    assert min_rounds <= moved["rounds"] <= max_rounds
    if stream:
        assert answer.num_chunks > 1


def test_same_picture_again_reuses_its_prompt(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(101, *ABOVE_DEFAULT)
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    first, second = (_ask(stack, [image]) for _ in range(2))
    assert_exact(first, expected)
    assert_exact(second, expected)
    assert _cached_tokens(first) < num_tokens(image)
    assert _cached_tokens(second) > num_tokens(image)


def test_pictures_of_one_size_are_told_apart(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(seed, *ABOVE_DEFAULT) for seed in (110, 111)]
    answers = [_ask(stack, [image]) for image in images]
    for image, answer in zip(images, answers, strict=True):
        assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert answers[0].token_ids != answers[1].token_ids


def test_many_requests_at_once(stack: LocalStack, oracle: Oracle) -> None:
    sizes = [BELOW_DEFAULT, ABOVE_DEFAULT, ABOVE_HALF_POOL, ABOVE_POOL, MANY_POOLS, WHOLE_DEFAULT]
    images = [patchwork(120 + i, *sizes[i % len(sizes)]) for i in range(12)]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [image]), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    assert [_moved(a)["image_tokens"] for a in answers] == [num_tokens(i) for i in images]


def test_several_pictures_in_one_request_keep_their_order(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [patchwork(240, *ABOVE_POOL), patchwork(241, *BELOW_DEFAULT), patchwork(242, 5, 7)]
    answers = []
    for order in (images, images[::-1], [images[1], images[0], images[2]]):
        answer = _ask(stack, order)
        assert_exact(answer, oracle.generate(order, QUESTION, MAX_TOKENS))
        assert _moved(answer)["image_tokens"] == sum(num_tokens(image) for image in images)
        answers.append(answer.token_ids)
    assert all(one != other for one, other in pairwise(answers))


def test_same_picture_twice_in_one_request(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(145, *ABOVE_DEFAULT)] * 2
    assert_exact(_ask(stack, images), oracle.generate(images, QUESTION, MAX_TOKENS))


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_text_alone(stack: LocalStack, oracle: Oracle, stream: bool) -> None:
    answer = _ask(stack, [], stream=stream)
    assert_exact(answer, oracle.generate([], QUESTION, MAX_TOKENS))
    assert "mm_resume" not in (answer.engine_data or {})


def test_second_turn_of_a_conversation(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(152, *ABOVE_DEFAULT)
    first = _ask(stack, [image])
    assert_exact(first, oracle.generate([image], QUESTION, MAX_TOKENS))
    turns = [
        {"role": "assistant", "content": "It is a star."},
        {"role": "user", "content": "What colour is it?"},
    ]
    text = {"type": "text", "text": QUESTION}
    by_url = {"type": "image_url", "image_url": {"url": data_url(image)}}
    second = _ask(stack, [], messages=[{"role": "user", "content": [by_url, text]}, *turns])
    asked = [{"role": "user", "content": [{"type": "image"}, text]}, *turns]
    assert_exact(second, oracle.chat(asked, [image], MAX_TOKENS))
    assert _cached_tokens(second) > num_tokens(image)


def test_picture_from_the_web(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(160, *ABOVE_DEFAULT)
    with serve({"/picture.png": Page(_png(image))}) as url:
        answer = ask(stack.base_url, MODEL_NAME, [f"{url}/picture.png"], QUESTION, MAX_TOKENS)
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))


def test_pools_are_as_small_as_this_module_says(stack: LocalStack) -> None:
    assert [status(stack, role)["pool"]["total"] for role in ("encode", "prefill")] == [8, 8]


def _ask(
    stack: LocalStack, images: list[Image.Image], stream: bool = False, **extra: object
) -> Answer:
    return ask(
        stack.base_url,
        MODEL_NAME,
        [data_url(image) for image in images],
        QUESTION,
        MAX_TOKENS,
        stream=stream,
        logprobs=True,
        **extra,
    )


def _png(image: Image.Image) -> bytes:
    return base64.b64decode(data_url(image).partition(",")[2])


def _moved(answer: Answer) -> dict[str, int]:
    assert answer.engine_data is not None
    moved: dict[str, int] = answer.engine_data["mm_resume"]
    return moved


def _cached_tokens(answer: Answer) -> int:
    assert answer.usage is not None
    return int((answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
