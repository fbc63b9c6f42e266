# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--encode-min-tokens`, `--encode-min-items`: the engine encodes what is small, and as well."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.colliding import colliding_pngs, png_url
from tests.support.deployments import ENCODE_LOCALLY, MODEL_NAME, SMALL_TOKENS
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.web import Page, serve
from tests.support.worker_status import status

DEPLOYMENT = ENCODE_LOCALLY

QUESTION = "What is this?"
MAX_TOKENS = 12
SMALL = (4, 4)
LARGE = (8, 5)
"""As many tokens as are not small any more."""


def test_small_is_encoded_by_the_engine_and_the_rest_is_not(
    stack: LocalStack, oracle: Oracle
) -> None:
    small, large = patchwork(1200, *SMALL), patchwork(1201, *LARGE)
    assert num_tokens(small) < SMALL_TOKENS == num_tokens(large)
    for image, expected in ((small, (1, 0, 0)), (large, (0, 1, 1))):
        before = _counts(stack)
        answer = _ask(stack, [data_url(image)])
        assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
        assert _risen(stack, before) == expected


def test_a_request_is_encoded_in_one_place(stack: LocalStack, oracle: Oracle) -> None:
    """Two are too many, small as they are."""
    images = [patchwork(1202 + i, *SMALL) for i in range(2)]
    before = _counts(stack)
    answer = _ask(stack, [data_url(image) for image in images])
    assert_exact(answer, oracle.generate(images, QUESTION, MAX_TOKENS))
    assert _risen(stack, before) == (0, 2, 2)


def test_small_images_that_the_prefix_cache_would_take_for_one(
    stack: LocalStack, oracle: Oracle
) -> None:
    """Here they are named by the engine's own worker. One that comes again is known."""
    images = [patchwork(1230 + i, *SMALL) for i in range(2)]
    right = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    assert right[0].token_ids != right[1].token_ids, "one answer for both proves nothing"
    before = status(stack, "prefill")
    files = colliding_pngs(before["content_identity"], *images)
    for asked, is_cached in ((0, False), (1, False), (1, True), (0, True)):
        answer = _ask(stack, [png_url(files[asked])])
        assert_exact(answer, right[asked])
        assert (answer.cached_tokens > num_tokens(images[asked])) == is_cached
    moved = status(stack, "prefill")["content_names"]["moved"]
    assert moved == before["content_names"]["moved"] + 1, "they did not meet"
    together = _ask(stack, [png_url(file) for file in files])  # by the encode worker
    assert_exact(together, oracle.generate(images, QUESTION, MAX_TOKENS))


def test_the_size_behind_a_url_is_learnt(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(1204, *SMALL)
    expected = oracle.generate([image], QUESTION, MAX_TOKENS)
    before = _counts(stack)
    with serve({"/a.png": Page(_png(image))}) as root:
        for risen in ((0, 1, 1), (1, 1, 1)):
            assert_exact(_ask(stack, [f"{root}/a.png"]), expected)
            assert _risen(stack, before) == risen


def test_both_kinds_at_once(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(1210 + i, *(SMALL, LARGE)[i % 2]) for i in range(8)]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in images]
    before = _counts(stack)
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [data_url(image)]), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    assert _risen(stack, before) == (4, 4, 4)


def test_a_small_picture_that_is_damaged_is_the_clients_error(stack: LocalStack) -> None:
    content = _png(patchwork(1220, *SMALL))
    damaged = base64.b64encode(content[: len(content) // 2]).decode()
    answer = _ask(stack, [f"data:image/png;base64,{damaged}"])
    assert (answer.status, "send the whole file" in answer.error_message) == (400, True)


def _ask(stack: LocalStack, urls: list[str]) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _counts(stack: LocalStack) -> tuple[int, ...]:
    """Items that the policy left to the engine, those that were handed over, and encoded."""
    totals = status(stack, "processor")["totals"]
    encoded = status(stack, "encode")["totals"]["encodes"]
    return totals["items_local"], totals["items"], encoded


def _risen(stack: LocalStack, before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(now - then for now, then in zip(_counts(stack), before, strict=True))
