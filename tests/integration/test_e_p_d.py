# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""With a decode worker, which takes the prompt's KV over NIXL, answers are exact all the same.

As in test_token_exact.py: 8 blocks of 16 tokens, 2 blocks by default.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import E_P_D, E_P_D_CONTEXT_LENGTH, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.faults import SEEN_DEADLINE_S, asking
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import leftovers, status, wait_until

DEPLOYMENT = E_P_D

MAX_TOKENS = 16
QUESTION = "What is this?"

BELOW_DEFAULT = (4, 4)
ABOVE_DEFAULT = (7, 6)
ABOVE_POOL = (15, 11)
LONG = 6000
HOME_DEADLINE_S = 15.0
NUM_CHOICES = 3
ALMOST_GREEDY = 1e-5
"""The frontend wants a temperature for several choices; this one leaves no choice."""


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(BELOW_DEFAULT, id="below-default"),
        pytest.param(ABOVE_DEFAULT, id="above-default"),
        pytest.param(ABOVE_POOL, id="above-pool"),
    ],
)
def test_picture_of_any_size(
    stack: LocalStack, oracle: Oracle, size: tuple[int, int], stream: bool
) -> None:
    image = patchwork(500 + sum(size) + stream, *size)
    answer = _ask(stack, [image], stream=stream)
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert len(answer.logprobs) == len(answer.token_ids)
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["image_tokens"] == num_tokens(image)
    if stream:
        assert answer.num_chunks > 1


def test_several_pictures_in_one_request_keep_their_order(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [patchwork(540, *ABOVE_POOL), patchwork(541, *BELOW_DEFAULT), patchwork(542, 5, 7)]
    answers = [_ask(stack, order) for order in (images, images[::-1])]
    for order, answer in zip((images, images[::-1]), answers, strict=True):
        assert_exact(answer, oracle.generate(order, QUESTION, MAX_TOKENS))
    assert answers[0].token_ids != answers[1].token_ids


def test_same_picture_again_reuses_its_prompt(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(450, *ABOVE_DEFAULT)
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    first, second = (_ask(stack, [image]) for _ in range(2))
    assert_exact(first, expected)
    assert_exact(second, expected)
    assert _cached_tokens(first) < num_tokens(image) < _cached_tokens(second)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_text_alone(stack: LocalStack, oracle: Oracle, stream: bool) -> None:
    assert_exact(_ask(stack, [], stream=stream), oracle.generate([], QUESTION, MAX_TOKENS))


@pytest.mark.parametrize("images", [[], [patchwork(460, *BELOW_DEFAULT)]], ids=["text", "picture"])
def test_one_token_which_the_prefill_worker_has_chosen(
    stack: LocalStack, oracle: Oracle, images: list[Image.Image]
) -> None:
    answer = _ask(stack, images, max_tokens=1)
    assert_exact(answer, oracle.generate(images, QUESTION, 1))
    assert answer.finish_reason == "length"


def test_many_requests_at_once(stack: LocalStack, oracle: Oracle) -> None:
    sizes = [BELOW_DEFAULT, ABOVE_DEFAULT, ABOVE_POOL]
    images = [patchwork(770 + i, *sizes[i % len(sizes)]) for i in range(9)]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [image]), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("images", [[], [patchwork(480, *ABOVE_POOL)]], ids=["text", "picture"])
def test_every_choice_is_exact_from_one_transfer(
    stack: LocalStack, oracle: Oracle, images: list[Image.Image], stream: bool
) -> None:
    before = status(stack, "processor")["totals"]["items"]
    answer = _ask_choices(stack, images, ALMOST_GREEDY, stream)
    expected = oracle.generate(images, QUESTION, MAX_TOKENS)
    assert _choices(answer) == [(expected.text, "length")] * NUM_CHOICES
    assert answer.usage is not None
    assert answer.usage["prompt_tokens"] == expected.prompt_tokens
    assert answer.usage["completion_tokens"] == NUM_CHOICES * MAX_TOKENS
    assert status(stack, "processor")["totals"]["items"] - before == len(images)


def test_choices_differ_from_each_other(stack: LocalStack) -> None:
    answer = _ask_choices(stack, [patchwork(482, *BELOW_DEFAULT)], temperature=2)
    assert len(set(_choices(answer))) > 1


@pytest.mark.parametrize("images", [[], [patchwork(481, *BELOW_DEFAULT)]], ids=["text", "picture"])
def test_a_prompt_that_is_too_long_is_the_clients_error(
    stack: LocalStack, images: list[Image.Image]
) -> None:
    answer = _ask(stack, images, question="What is this? " * E_P_D_CONTEXT_LENGTH)
    assert answer.status == 400
    assert "tokens" in answer.error_message


def test_a_client_that_hangs_up_while_the_tower_works_leaves_nothing(stack: LocalStack) -> None:
    urls = [data_url(patchwork(490, *BELOW_DEFAULT))]
    with holding(stack, Moment.IN_THE_TOWER) as hold:
        with asking(stack, urls, QUESTION, LONG):
            hold.caught()
        assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)


@pytest.mark.parametrize("images", [[], [patchwork(490, *BELOW_DEFAULT)]], ids=["text", "picture"])
def test_a_client_that_hangs_up_while_tokens_stream_leaves_nothing(
    stack: LocalStack, oracle: Oracle, images: list[Image.Image]
) -> None:
    with asking(stack, [data_url(image) for image in images], QUESTION, LONG):
        assert wait_until(lambda: status(stack, "decode")["engine_requests"] > 0, SEEN_DEADLINE_S)
    assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)
    image = patchwork(491, *BELOW_DEFAULT)
    assert_exact(_ask(stack, [image]), oracle.generate([image], QUESTION, MAX_TOKENS))


def _ask(
    stack: LocalStack,
    images: list[Image.Image],
    question: str = QUESTION,
    max_tokens: int = MAX_TOKENS,
    **extra: Any,
) -> Answer:
    urls = [data_url(image) for image in images]
    extra = {"logprobs": True, **extra}
    return ask(stack.base_url, MODEL_NAME, urls, question, max_tokens, **extra)


def _ask_choices(
    stack: LocalStack, images: list[Image.Image], temperature: float, stream: bool = False
) -> Answer:
    # Dynamo does not give `completion_token_ids` of several choices.
    options: dict[str, Any] = {"n": NUM_CHOICES, "temperature": temperature, "nvext": {}}
    return _ask(stack, images, stream=stream, **options)


def _choices(answer: Answer) -> list[tuple[str, str]]:
    """Text and finish reason of each choice."""
    texts, reasons = [""] * NUM_CHOICES, [""] * NUM_CHOICES
    for part in answer.raw:
        for choice in part.get("choices") or ():
            index = choice["index"]
            said = choice.get("message") or choice.get("delta") or {}
            texts[index] += said.get("content") or ""
            reasons[index] += choice.get("finish_reason") or ""
    return list(zip(texts, reasons, strict=True))


def _cached_tokens(answer: Answer) -> int:
    assert answer.usage is not None
    return int((answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
