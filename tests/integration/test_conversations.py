# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Many pictures in one prompt, and one more in every turn: exact, in order, and cached one by one.

Through pools of one block, so that the pictures of a request have to wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, ONE_BLOCK
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork

DEPLOYMENT = ONE_BLOCK

MAX_TOKENS = 8
Content = Sequence[Image.Image | str]


def test_sixty_four_pictures_of_different_sizes_between_words(
    stack: LocalStack, oracle: Oracle
) -> None:
    sizes = list(product(range(2, 10), repeat=2))
    images = [patchwork(400 + i, *size) for i, size in enumerate(sizes)]
    assert len({image.size for image in images}) == 64
    content: list[Image.Image | str] = ["Here they are:"]
    for number, image in enumerate(images):
        content += [image] if number % 3 else [image, f"That was number {number}."]
    answer = _ask(stack, [("user", [*content, "Which is the largest?"])])
    assert_exact(answer, _expected(oracle, [("user", [*content, "Which is the largest?"])]))
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["image_tokens"] == sum(map(num_tokens, images))


def test_a_new_picture_in_every_turn_keeps_what_was_cached(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [patchwork(500 + i, 4 + i, 5) for i in range(5)]
    turns: list[tuple[str, Content]] = []
    asked_before = 0
    for number, image in enumerate(images):
        turns.append(("user", [f"This is number {number}:", image, "What is it?"]))
        answer = _ask(stack, turns)
        assert_exact(answer, _expected(oracle, turns))
        assert answer.usage is not None
        cached = answer.usage["prompt_tokens_details"]["cached_tokens"]
        # All of the turn before, and nothing of the new picture.
        assert asked_before <= cached < answer.usage["prompt_tokens"] - num_tokens(image)
        asked_before = answer.usage["prompt_tokens"]
        turns.append(("assistant", ["It is a star."]))


def test_another_picture_in_the_middle_is_another_conversation(
    stack: LocalStack, oracle: Oracle
) -> None:
    """What is cached is known by its pictures, not by its place or size."""
    first, second, other = (patchwork(seed, 6, 5) for seed in (520, 521, 522))
    for middle in (second, other, second):
        turns = [("user", [first, "One.", middle, "Two.", first, "What are they?"])]
        assert_exact(_ask(stack, turns), _expected(oracle, turns))


def _ask(stack: LocalStack, turns: Sequence[tuple[str, Content]]) -> Answer:
    messages = [{"role": role, "content": [_part(p) for p in parts]} for role, parts in turns]
    return ask(stack.base_url, MODEL_NAME, [], "", MAX_TOKENS, logprobs=True, messages=messages)


def _expected(oracle: Oracle, turns: Sequence[tuple[str, Content]]) -> Any:
    messages = [
        {"role": role, "content": [_place(part) for part in parts]} for role, parts in turns
    ]
    images = [part for _, parts in turns for part in parts if isinstance(part, Image.Image)]
    return oracle.chat(messages, images, MAX_TOKENS)


def _part(part: Image.Image | str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": data_url(part)}}


def _place(part: Image.Image | str) -> dict[str, Any]:
    return _part(part) if isinstance(part, str) else {"type": "image"}
