# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Without the block allocator: slots of a fixed size, one grant, and a clear refusal beyond."""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import INDEX_MODE, MODEL_NAME, SLOT_TOKENS
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork

pytestmark = pytest.mark.nightly
DEPLOYMENT = INDEX_MODE

MAX_TOKENS = 12
QUESTION = "What is this?"
WHOLE_SLOT = (8, 8)
TOO_LARGE = (13, 5)


@pytest.mark.parametrize("size", [(4, 4), (7, 6), WHOLE_SLOT], ids=["small", "medium", "whole"])
def test_picture_that_fits_a_slot(stack: LocalStack, oracle: Oracle, size: tuple[int, int]) -> None:
    image = patchwork(sum(size), *size)
    assert num_tokens(image) <= SLOT_TOKENS
    answer = _ask(stack, data_url(image))
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["rounds"] == 1


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_picture_beyond_a_slot_is_refused_and_the_next_is_served(
    stack: LocalStack, oracle: Oracle, stream: bool
) -> None:
    image = patchwork(30, *TOO_LARGE)
    answer = _ask(stack, data_url(image), stream)
    assert answer.error is not None
    assert answer.error["code"] == 400
    assert answer.status == (200 if stream else 400)
    for needed in (str(num_tokens(image)), f"holds {SLOT_TOKENS}", "SGLANG_USE_BLOCK_ALLOCATOR"):
        assert needed in answer.error_message
    good = patchwork(31, *WHOLE_SLOT)
    assert_exact(_ask(stack, data_url(good)), oracle.generate([good], QUESTION, MAX_TOKENS))


def _ask(stack: LocalStack, url: str, stream: bool = False) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS, stream, logprobs=True)
