# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Dynamo's structural tags, which are on by default: a grammar for calls in the model's own words.

The model has random weights, so that only the grammar can have it begin like this.
"""

from __future__ import annotations

from typing import Any

import pytest

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME, ONE_BLOCK
from tests.support.openai_requests import COUNT, COUNT_MUST_BE_CALLED, PAINT
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork

DEPLOYMENT = ONE_BLOCK

BEGINNING = '<tool_call>\n{"name": "count", "arguments": {'


@pytest.mark.parametrize("choice", [COUNT_MUST_BE_CALLED, "required"], ids=["named", "required"])
def test_a_call_is_in_the_words_of_the_models_parser(
    stack: LocalStack, oracle: Oracle, choice: Any
) -> None:
    tools = [COUNT] if choice == "required" else [PAINT, COUNT]
    image = data_url(patchwork(1500, 4, 4))
    answer = ask(
        stack.base_url, MODEL_NAME, [image], "How many?", 48, tools=tools, tool_choice=choice
    )
    assert answer.ok, answer.raw
    assert oracle.text_of(*answer.token_ids).startswith(BEGINNING)
    assert [call.name for call in answer.tool_calls] == ["count"]
