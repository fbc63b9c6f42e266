# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whether an answer over HTTP is the one that transformers gives, token by token."""

from __future__ import annotations

import pytest

from tests.support.client import Answer
from tests.support.oracle import OracleAnswer

MIN_MARGIN = 1e-3
"""Between the two best logits; rounding moves them by about 1e-5 in float32."""
LOGPROB_TOLERANCE = 5e-4


def assert_exact(answer: Answer, expected: OracleAnswer) -> None:
    """The same tokens, with the same probabilities, for a prompt of the same length."""
    assert expected.margin > MIN_MARGIN, "nearly a tie, which proves nothing: take another picture"
    assert answer.ok, answer.raw
    assert answer.token_ids == expected.token_ids
    assert answer.usage is not None
    assert answer.usage["prompt_tokens"] == expected.prompt_tokens
    assert answer.usage["completion_tokens"] == len(expected.token_ids)
    if answer.logprobs:
        # Tells apart what the choice of a token may not: one wrong row among hundreds.
        assert logprobs_of(answer) == pytest.approx(expected.logprobs, abs=LOGPROB_TOLERANCE)


def logprobs_of(answer: Answer) -> list[float]:
    """Log-probability of each new token."""
    return [entry["logprob"] for entry in answer.logprobs]
