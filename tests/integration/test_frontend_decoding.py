# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--frontend-decoding`: the frontend fetches and decodes, the encode worker reads its pixels."""

from __future__ import annotations

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, png
from tests.support.deployments import FRONTEND_DECODING, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.metrics import risen
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.web import Page, serve

DEPLOYMENT = FRONTEND_DECODING

QUESTION = "What is this?"
MAX_TOKENS = 8


def test_pictures_of_every_kind_and_size_keep_their_order(
    stack: LocalStack, oracle: Oracle
) -> None:
    images = [
        patchwork(320, 7, 6),
        patchwork(321, 4, 4).convert("L"),
        _half_transparent(patchwork(322, 15, 11)),
        patchwork(323, 9, 5).convert("P"),
    ]
    answer = _ask(stack, *(data_url(image) for image in images))
    assert_exact(answer, oracle.generate(images, QUESTION, MAX_TOKENS))
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["image_tokens"] == sum(map(num_tokens, images))


def test_a_url_for_one_use_is_used_once(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(330, 7, 6)
    asked: list[str] = []
    with serve({"/once.png": Page(png(image), uses=1)}, asked) as web:
        answer = _ask(stack, f"{web}/once.png")
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert len(asked) == 1


def test_same_picture_again_is_neither_encoded_nor_prefilled(
    stack: LocalStack, oracle: Oracle
) -> None:
    image = patchwork(340, 7, 6)
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    assert_exact(_ask(stack, data_url(image)), expected)
    with risen(stack) as counts:
        again = _ask(stack, data_url(image))
    assert_exact(again, expected)
    assert counts["encode"].get("encodes_total", 0) == 0
    assert again.usage is not None
    assert again.usage["prompt_tokens_details"]["cached_tokens"] > num_tokens(image)


def test_no_picture(stack: LocalStack) -> None:
    assert _ask(stack, "data:image/png;base64,AAAA").status == 400


def test_text_alone(stack: LocalStack, oracle: Oracle) -> None:
    assert_exact(_ask(stack), oracle.generate([], QUESTION, MAX_TOKENS))


def _half_transparent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(128)
    return image


def _ask(stack: LocalStack, *urls: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
