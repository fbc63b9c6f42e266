# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/budget.py`: placeholders become tokens, up to what the model takes."""

import pytest

from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.errors import Reason, Refused


def test_items_may_fill_the_prompt_to_its_last_token() -> None:
    budget = PromptBudget(prompt_tokens=12, max_tokens=30)
    budget.add(10)
    budget.add(10)
    assert budget.prompt_tokens == 30


def test_one_token_more_is_refused_and_says_what_to_change() -> None:
    budget = PromptBudget(prompt_tokens=12, max_tokens=30)
    with pytest.raises(Refused, match=r"at least 31 tokens .* takes 30: send fewer") as refused:
        budget.add(20)
    assert refused.value.reason is Reason.BAD_REQUEST
