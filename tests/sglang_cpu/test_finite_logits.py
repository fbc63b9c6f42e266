# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Logits that SGLang could not draw from, as requests bring them about."""

import inspect
import pkgutil

import pytest
import torch

from dynamo.sglang_mm_resume.sglang_cpu import finite_logits

INFINITE = float("inf")
GOOD = [0.5, -1.0, 2.0]

#: What allows nothing, and what is no number.
UNUSABLE = {
    "nothing-allowed": [-INFINITE] * 3,
    "no-number": [float("nan")] * 3,
    "one-is-no-number": [float("nan"), 0.0, 1.0],
    "overflown": [INFINITE, 0.0, INFINITE],
}


@pytest.mark.parametrize("row", UNUSABLE.values(), ids=UNUSABLE)
def test_a_row_that_cannot_be_drawn_from_becomes_one_that_can(row: list[float]) -> None:
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        _draw(torch.tensor([GOOD, row]))
    logits = torch.tensor([GOOD, row])
    assert finite_logits.keep_finite(None, None, logits) is None
    assert logits[0].tolist() == GOOD
    assert _draw(logits).shape == (2, 1)


def test_a_row_with_something_allowed_stays_as_it_is() -> None:
    masked = [-INFINITE, 3.0, -INFINITE]
    logits = torch.tensor([masked, GOOD])
    finite_logits.keep_finite(None, None, logits)
    assert logits.tolist() == [masked, GOOD]


@pytest.mark.parametrize("target", finite_logits.TARGETS)
def test_sglang_has_what_is_hooked(target: str) -> None:
    method = inspect.unwrap(pkgutil.resolve_name(target))
    assert list(inspect.signature(method).parameters)[:2] == ["self", "logits"]


def test_sglang_samples_from_what_the_hooked_methods_leave() -> None:
    source = inspect.getsource(pkgutil.resolve_name("sglang.srt.model_executor.model_runner"))
    for target in finite_logits.TARGETS:
        assert f"sampling_info.{target.rpartition('.')[2]}(" in source


def _draw(logits: torch.Tensor) -> torch.Tensor:
    """As SGLang does with the lowest temperature that it samples with."""
    return torch.multinomial(torch.softmax(logits / 1e-6, dim=-1), 1)
