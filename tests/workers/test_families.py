# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which models are refused when a worker starts, and that SGLang's encoder takes no others."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.workers.families import (
    REFUSED,
    SERVED,
    require_served,
    require_served_by,
)

KIMI = "KimiVLForConditionalGeneration"


@pytest.mark.parametrize("family", SERVED, ids=lambda family: family.name)
def test_a_family_is_served(family: object) -> None:
    require_served({"architectures": [family.architecture]}, "model")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "architectures", [[KIMI], ["Gemma3ForConditionalGeneration"], ["LlamaForCausalLM"], [], None]
)
def test_another_is_refused_with_the_names_of_those_that_are(
    architectures: list[str] | None,
) -> None:
    with pytest.raises(ValueError, match=r"^--model-path: a/model is ") as refused:
        require_served({"architectures": architectures}, "a/model")
    text = str(refused.value)
    assert "\n" not in text
    assert all(family.name in text for family in SERVED)
    if architectures:
        assert architectures[0] in text


def test_it_says_why() -> None:
    with pytest.raises(ValueError, match="code of the checkpoint"):
        require_served({"architectures": [KIMI]}, "a/model")


@pytest.mark.parametrize("form", ["--model-path {}", "--model {}", "--model-path={}", "--tp 1"])
async def test_the_model_is_found_among_sglangs_arguments(form: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [KIMI]}))
    arguments = ["--dtype", "float32", *form.format(tmp_path).split()]
    if "{}" in form:
        with pytest.raises(ValueError, match=KIMI):
            await require_served_by(arguments)
    else:
        await require_served_by(arguments)


def test_every_family_of_sglangs_encoder_is_served_or_refused_by_name() -> None:
    from sglang.srt.arg_groups import pd_disaggregation_hook

    source = inspect.getsource(pd_disaggregation_hook)
    (listed,) = re.findall(r"model_arch not in \[(.*?)\]", source, re.DOTALL)
    known = {family.architecture for family in (*SERVED, *REFUSED)}
    assert set(re.findall(r'"(\w+)"', listed)) == known
