# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which model families are served, by `architectures` in a model's config.json.

SGLang's encoder takes more of them. What has not been seen to answer as it should is refused when a
worker starts, and not by wrong answers later. docs/models.md is generated from here.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dynamo.llm import fetch_model


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture. `why_not` is empty for those that are served."""

    name: str
    architecture: str
    why_not: str = ""
    note: str = ""


SERVED: Final = (
    Family("Qwen2-VL", "Qwen2VLForConditionalGeneration"),
    Family(
        "Qwen2.5-VL",
        "Qwen2_5_VLForConditionalGeneration",
        note="Videos are exact with respect to SGLang's own engine, not to transformers (below).",
    ),
    Family(
        "Qwen3-VL",
        "Qwen3VLForConditionalGeneration",
        note="Deepstack levels travel as columns of the rows; the prompt spells each step's time.",
    ),
    Family("Qwen3-VL-MoE", "Qwen3VLMoeForConditionalGeneration", note="As Qwen3-VL."),
)

_UNTESTED = "not tested"
_HYBRID = f"{_UNTESTED}: its language model has linear attention"
_KIMI = f"{_UNTESTED}: its configuration is code of the checkpoint"
_AUDIO = "audio items are not carried"
#: The others that SGLang's encoder takes (`--encoder-only`).
REFUSED: Final = (
    Family("Qwen3.5", "Qwen3_5ForConditionalGeneration", _HYBRID),
    Family("Qwen3.5-MoE", "Qwen3_5MoeForConditionalGeneration", _HYBRID),
    Family("Intern-S2 preview", "InternS2PreviewForConditionalGeneration", _UNTESTED),
    Family("Qwen3-Omni", "Qwen3OmniMoeForConditionalGeneration", _AUDIO),
    Family("Qwen2.5-Omni", "Qwen2_5OmniForConditionalGeneration", _AUDIO),
    Family("Qwen2-Audio", "Qwen2AudioForConditionalGeneration", _AUDIO),
    Family("Dots3-Note", "Dots3NoteForCausalLM", _UNTESTED),
    Family("Kimi-VL", "KimiVLForConditionalGeneration", _KIMI),
    Family("Kimi-K2.5", "KimiK25ForConditionalGeneration", _KIMI),
    Family("Kimi-K3", "KimiK3ForConditionalGeneration", _KIMI),
    Family("MiMo-V2", "MiMoV2ForCausalLM", _UNTESTED),
    Family("GLM-5-Next", "Glm5NextForConditionalGeneration", _UNTESTED),
)


def require_served(config: dict[str, Any], model_path: str) -> None:
    """Raises `ValueError`, one line, for a model of another family."""
    found = config.get("architectures") or ["a model without architectures in its config.json"]
    if any(family.architecture in found for family in SERVED):
        return
    reasons = [family.why_not for family in REFUSED if family.architecture in found]
    because = f" ({reasons[0]})" if reasons else ""
    served = ", ".join(family.name for family in SERVED)
    raise ValueError(
        f"--model-path: {model_path} is {found[0]!s:.100}, which is not served{because}: "
        f"use a model of {served} (docs/models.md)"
    )


async def require_served_by(arguments: Sequence[str]) -> None:
    """The same for the model that SGLang's arguments name, if they do."""
    model_path = _model_path_in(arguments)
    if model_path is not None:
        require_served(config_in(await folder_of(model_path)), model_path)


async def folder_of(model_path: str) -> Path:
    """Of the model's files; its weights may be missing."""
    folder = Path(model_path)
    return folder if folder.is_dir() else Path(await fetch_model(model_path, ignore_weights=True))


def config_in(folder: Path) -> dict[str, Any]:
    """The model's config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _model_path_in(arguments: Sequence[str]) -> str | None:
    """`None` where a file of SGLang's names it, or where it is missing, for SGLang to say so."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model-path", "--model", nargs="?")
    found: str | None = parser.parse_known_args(arguments)[0].model_path
    return found
