# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Models without a vision tower: what is left out, and that SGLang takes them for its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.models.registry import import_model_classes

from dynamo.sglang_mm_resume import sglang_no_tower
from dynamo.sglang_mm_resume.sglang_no_tower.models import TOWER, without_tower
from dynamo.sglang_mm_resume.workers import sglang_engine
from dynamo.sglang_mm_resume.workers.sglang_engine import EXTERNAL_MODELS, leave_tower_out


class Model(torch.nn.Module):
    """Has what SGLang's models have of a tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual = torch.nn.Linear(width, width, bias=False)
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.loaded: list[str] = []

    def load_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        self.loaded += [name for name, _ in weights]


def test_the_tower_and_its_weights_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = without_tower(Model)(width=3)
    assert "9 parameters" in caplog.text
    assert [name for name, _ in model.named_parameters()] == ["model.weight"]
    model.load_weights([("visual.weight", 1), ("model.visual.x", 2), ("model.weight", 3)])
    assert model.loaded == ["model.weight"]


def test_sglang_finds_them_by_their_architectures() -> None:
    found = import_model_classes(sglang_no_tower.__name__, strict=True)
    assert set(found) == set(sglang_no_tower.ARCHITECTURES)
    for name, model in found.items():
        (original,) = model.__bases__
        assert (original.__name__, model is original) == (name, False)
        assert original.load_weights is not model.load_weights
        inits = [vars(c)["__init__"] for c in original.__mro__ if "sglang" in c.__module__]
        assert any(TOWER.rstrip(".") in init.__code__.co_names for init in inits)


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv(EXTERNAL_MODELS, "")  # so that it is put back
    monkeypatch.delenv(EXTERNAL_MODELS)
    return monkeypatch


def arguments(monkeypatch: pytest.MonkeyPatch, architecture: str) -> Any:
    config = SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture]))
    monkeypatch.setattr(sglang_engine, "get_sglang_model_config", lambda _: config)
    return SimpleNamespace()


def test_another_model_is_refused(variable: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"KimiVL.* cannot be started without its vision tower"):
        leave_tower_out(arguments(variable, "KimiVLForConditionalGeneration"))


def test_somebody_elses_models_stay(variable: pytest.MonkeyPatch) -> None:
    server_args = arguments(variable, sglang_no_tower.ARCHITECTURES[0])
    leave_tower_out(server_args)
    leave_tower_out(server_args)
    variable.setenv(EXTERNAL_MODELS, "theirs")
    with pytest.raises(ValueError, match="unset it"):
        leave_tower_out(server_args)
