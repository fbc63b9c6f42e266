# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that ended an engine, or held up everybody else, made as small as they can be.

Each is sent again by tests/faults/test_fuzz.py. What a comment says happened before it was cured.
"""

from __future__ import annotations

from typing import Any

from tests.fuzzing.requests import CHAT, TEXT, Request
from tests.fuzzing.sampling import VOCABULARY
from tests.support.deployments import MODEL_NAME


def _chat(name: str, **fields: Any) -> Request:
    question = {"role": "user", "content": "What is this?"}
    body = {"model": MODEL_NAME, "messages": [question], "max_tokens": 16}
    return Request(CHAT, body | fields, name=name)


def _drawn(name: str, **fields: Any) -> Request:
    """Not greedy, and not from the whole vocabulary: SGLang draws with `torch.multinomial`."""
    return _chat(name, temperature=1, top_p=0.9, **fields)


FOUND = [
    # An id beyond the vocabulary is an index out of range in the engine, which exits.
    _chat("stop-id-beyond-the-vocabulary", stop_token_ids=[VOCABULARY + 88], min_tokens=2),
    Request(
        TEXT,
        {"model": MODEL_NAME, "prompt": [1, VOCABULARY], "max_tokens": 4},
        name="prompt-id-beyond-the-vocabulary",
    ),
    # More log-probabilities than the vocabulary has tokens; the engine exits.
    _chat("log-probabilities-beyond-the-vocabulary", prompt_logprobs=VOCABULARY + 88),
    # No token can be drawn; the engine exits.
    _drawn("floor-above-the-only-choice", guided_choice=["a circle"], min_tokens=14),
    _drawn("all-tokens-are-stops", stop_token_ids=list(range(VOCABULARY)), min_tokens=2),
    _drawn("grammar-without-an-answer", guided_grammar="root ::= root"),
    _drawn("tiny-repetition-penalty", repetition_penalty=1e-30),
    # The engine asks the grammar for the next token, ever longer, before it serves others.
    _chat("nested-repetitions", guided_regex="(((((.*)*)*)*)*)*", max_tokens=512),
    _chat("nested-counts", guided_regex="(.{1,1000}){1,1000}", max_tokens=512),
    _chat("many-repetitions", guided_regex="a?" * 3_000),
]
