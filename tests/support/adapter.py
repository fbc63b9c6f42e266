# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter for the random model, which has learned some answers by heart.

So that its effect is plain to see, and that a model says what parsers look for: thoughts, calls.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.utils import parametrize
from transformers import AutoModelForImageTextToText, AutoProcessor

RANK = 8
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TURN_END = "<|im_end|>"
_IGNORED = -100  # what transformers' loss leaves out
_SEED = 0
_LEARNING_RATE = 1e-2
_MAX_STEPS = 400
_LEARNED = 0.05
"""Loss of an answer known by heart; its tokens then have a probability of nearly one."""


def teach(model_path: Path, out: Path, picture: Image.Image, lessons: Mapping[str, str]) -> None:
    """Write an adapter that answers each question about the picture as told. Takes seconds."""
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)  # layers so small are slower with two, which wait for each other
    processor = AutoProcessor.from_pretrained(model_path)
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    model.requires_grad_(False)
    low_rank = _adapt(model)
    _train(model, low_rank, [_lesson(processor, picture, q, a) for q, a in lessons.items()])
    _write(low_rank, model_path, out)


class _LowRank(torch.nn.Module):
    """Adds `B A` to a weight of a linear layer."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.A = torch.nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.B = torch.nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.B @ self.A


def _adapt(model: torch.nn.Module) -> dict[str, _LowRank]:
    """Layers of the language model, by their names."""
    found = {
        name: module
        for name, module in model.named_modules()
        if ".language_model.layers." in name and name.endswith(_TARGETS)
    }
    low_rank = {name: _LowRank(module.weight) for name, module in found.items()}
    for name, module in found.items():
        parametrize.register_parametrization(module, "weight", low_rank[name])
    return low_rank


def _lesson(processor: Any, picture: Image.Image, question: str, answer: str) -> dict[str, Any]:
    """Inputs of the model, and the answer's tokens as labels."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    asked, told = (
        processor(text=[text], images=[picture]).convert_to_tensors("pt")
        for text in (prompt, prompt + answer + _TURN_END)
    )
    labels = told["input_ids"].clone()
    labels[:, : asked["input_ids"].shape[1]] = _IGNORED
    return {**told, "labels": labels}


def _train(model: Any, low_rank: Mapping[str, _LowRank], lessons: list[dict[str, Any]]) -> None:
    parameters = [p for module in low_rank.values() for p in (module.A, module.B)]
    optimizer = torch.optim.Adam(parameters, _LEARNING_RATE)
    for _ in range(_MAX_STEPS):
        losses = [model(**lesson).loss for lesson in lessons]
        if max(losses) < _LEARNED:
            return
        sum(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    raise RuntimeError(f"the adapter has not learned its lessons: {losses}")


def _write(low_rank: Mapping[str, _LowRank], model_path: Path, out: Path) -> None:
    """In the form of the peft library."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        f"base_model.model.{name}.lora_{which}.weight": getattr(module, which).detach().contiguous()
        for name, module in low_rank.items()
        for which in ("A", "B")
    }
    save_file(weights, out / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model_path),
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(_TARGETS),
    }
    (out / "adapter_config.json").write_text(json.dumps(config))
