# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Build a tiny vision-language model with random weights: configuration, tokenizer, processor and
model, of one of the Qwen-VL families.

    python examples/demo_model/build.py --out DIR [--family qwen3_vl]

The folder is a complete local checkpoint: transformers' Auto classes and SGLang can load it.
`train.py` starts from such a folder; tests use it where the answers need not make sense.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pictures import corpus
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

PATCH = 14
MERGE = 2
TOKEN_PIXELS = PATCH * MERGE
"""Each image token of Qwen2-VL and Qwen2.5-VL covers a square of this many pixels."""
WINDOW = 8 * PATCH
"""Width of an attention window of Qwen2.5-VL's vision tower in pixels."""

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
VISION_START = "<|vision_start|>"
VISION_END = "<|vision_end|>"
IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    TURN_START,
    TURN_END,
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE_PAD,
    VIDEO_PAD,
)

CHAT_TEMPLATE = """\
{%- macro content_of(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type in ('image', 'image_url') -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type in ('video', 'video_url') -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + content_of(message.content) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

_DEFAULT_VOCAB = 512
_VOCAB_MULTIPLE = 64
_EXTRA_CORPUS = ("system\nuser\nassistant\n", "You are a helpful assistant.")
_MAX_POSITIONS = 32768
_BIAS_STD = 0.1

Fields = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of a model."""

    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    key_value_heads: int = 2
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int = 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads


@dataclass(frozen=True)
class Family:
    """What one architecture has of its own."""

    config: type
    model: type
    processor: type
    text: Callable[[Sizes], Fields]
    """Fields of the language model's configuration."""
    vision: Callable[[Sizes], Fields]
    """And of the vision tower's."""
    video_processor: type = Qwen2VLVideoProcessor
    patch: int = PATCH
    normalisation: Fields = field(default_factory=dict)


def build(
    out: Path,
    *,
    seed: int,
    family: str = "qwen2_5_vl",
    vocab_size: int = _DEFAULT_VOCAB,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    random_activation_scale: bool = True,
    **sizes: int,
) -> torch.nn.Module:
    """Write a float32 checkpoint with random weights to `out` and return the model.

    `sizes` are those of `Sizes`. `vocab_size` bounds the tokenizer including its special tokens.
    `min_pixels` and `max_pixels` are the processor's limits, by default of 4 and 4096 tokens:
    pictures outside are scaled. With `random_activation_scale` the weights are drawn so large that
    greedy answers depend on the picture; otherwise they are left as transformers draws them, which
    suits training.
    """
    out.mkdir(parents=True, exist_ok=True)
    kind = FAMILIES[family]
    token_pixels = (kind.patch * MERGE) ** 2
    limits = {
        "min_pixels": min_pixels or 4 * token_pixels,
        "max_pixels": max_pixels or 4096 * token_pixels,
    }
    tokenizer = build_tokenizer([*corpus(), *_EXTRA_CORPUS], vocab_size)
    build_processor(kind, tokenizer, limits).save_pretrained(out)
    _write_image_processor(kind, out, limits)
    config = build_config(kind, tokenizer, Sizes(**sizes))
    torch.manual_seed(seed)
    model = kind.model(config).to(torch.float32)
    if random_activation_scale:
        _draw_large_weights(model, seed)
    save_model(model, out)
    return model


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer that splits text the way Qwen2's tokenizer does."""
    template = Qwen2Tokenizer().backend_tokenizer
    backend = Tokenizer(BPE())
    backend.normalizer = template.normalizer
    backend.pre_tokenizer = template.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in (TURN_END, END_OF_TEXT)],
    )


def build_processor(kind: Family, tokenizer: Qwen2Tokenizer, limits: Fields) -> Any:
    """The processor for pictures, videos and chat messages."""
    size = {"shortest_edge": limits["min_pixels"], "longest_edge": limits["max_pixels"]}
    of_video = {"size": size} if kind.video_processor is Qwen3VLVideoProcessor else limits
    return kind.processor(
        image_processor=_image_processor(kind, limits),
        tokenizer=tokenizer,
        video_processor=kind.video_processor(**of_video, **_geometry(kind)),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(kind: Family, tokenizer: Qwen2Tokenizer, sizes: Sizes) -> Any:
    """The model's configuration."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": _round_up(len(tokenizer), _VOCAB_MULTIPLE),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": 2 * sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_value_heads,
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[TURN_END],
        "pad_token_id": ids[END_OF_TEXT],
        "tie_word_embeddings": False,
        **kind.text(sizes),
    }
    vision = {
        "depth": sizes.vision_depth,
        "num_heads": sizes.vision_heads,
        "in_channels": 3,
        "patch_size": kind.patch,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        **kind.vision(sizes),
    }
    return kind.config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=False,
    )


def save_model(model: torch.nn.Module, out: Path) -> None:
    """Write weights, config.json and generation_config.json."""
    config = model.config.text_config
    model.save_pretrained(out)
    if isinstance(model, Qwen3VLMoeForConditionalGeneration):
        _turn_experts(out / "model.safetensors")
    _update_json(out / "config.json", architectures=[type(model).__name__], dtype="float32")
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": [config.eos_token_id],
            "pad_token_id": config.pad_token_id,
            "do_sample": False,
        },
    )


def _qwen2_rope(sizes: Sizes) -> Fields:
    return {
        "rope_parameters": {
            "rope_type": "default",
            "type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": _mrope_section(sizes.head_dim),
        }
    }


def _qwen2_vision(sizes: Sizes) -> Fields:
    return {
        "embed_dim": sizes.vision_hidden,
        "hidden_size": sizes.hidden_size,
        "mlp_ratio": 2,
        "in_chans": 3,
        "spatial_patch_size": PATCH,
    }


def _qwen2_5_vision(sizes: Sizes) -> Fields:
    """The last vision block attends to the whole picture."""
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 2 * sizes.vision_hidden,
        "in_chans": 3,
        "out_hidden_size": sizes.hidden_size,
        "spatial_patch_size": PATCH,
        "window_size": WINDOW,
        "fullatt_block_indexes": [sizes.vision_depth - 1],
        "tokens_per_second": 2,
    }


def _qwen3_text(sizes: Sizes) -> Fields:
    return {
        "head_dim": sizes.head_dim,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": _mrope_section(sizes.head_dim),
            "mrope_interleaved": True,
        },
    }


def _qwen3_moe_text(sizes: Sizes) -> Fields:
    """The experts' width differs from the model's, which their layout must be told from."""
    return {
        **_qwen3_text(sizes),
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 3 * sizes.hidden_size // 4,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    }


def _qwen3_vision(sizes: Sizes) -> Fields:
    """Each of the first two vision blocks has a deepstack level of its own."""
    return {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 2 * sizes.vision_hidden,
        "out_hidden_size": sizes.hidden_size,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": list(range(min(sizes.vision_depth, sizes.layers)))[:2],
    }


_QWEN3_VL = Family(
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    text=_qwen3_text,
    vision=_qwen3_vision,
    video_processor=Qwen3VLVideoProcessor,
    patch=16,
    normalisation={"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
)
FAMILIES = {
    "qwen2_vl": Family(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        text=_qwen2_rope,
        vision=_qwen2_vision,
    ),
    "qwen2_5_vl": Family(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        text=_qwen2_rope,
        vision=_qwen2_5_vision,
    ),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(
        _QWEN3_VL,
        config=Qwen3VLMoeConfig,
        model=Qwen3VLMoeForConditionalGeneration,
        text=_qwen3_moe_text,
    ),
}


def _turn_experts(weights: Path) -> None:
    """Published checkpoints have the experts' matrices the other way round than transformers
    saves a fresh model's; both transformers and SGLang expect the published way.
    """
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            tensors[name] = tensor.transpose(-1, -2).contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})


def _mrope_section(head_dim: int) -> list[int]:
    """Split half a head's width over time, height and width; time gets what is left over."""
    half = head_dim // 2
    side = 3 * half // 8
    return [half - 2 * side, side, side]


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _draw_large_weights(model: torch.nn.Module, seed: int) -> None:
    """Redraw all matrices so that every layer's output has about the size of its input.

    With the usual small initial weights a random model's answers hardly depend on its input.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                std = 1 / math.sqrt(_inputs_of(name, parameter))
            elif name.endswith("bias"):
                std = _BIAS_STD
            else:
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _inputs_of(name: str, parameter: torch.nn.Parameter) -> int:
    """How many numbers go into one output."""
    if "embed_tokens" in name or "pos_embed" in name:
        return 1
    return parameter[0, 0].numel() if ".experts." in name else parameter[0].numel()


def _geometry(kind: Family) -> Fields:
    return {"patch_size": kind.patch, "merge_size": MERGE, "temporal_patch_size": 2}


def _image_processor(kind: Family, limits: Fields) -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(**limits, **_geometry(kind), **kind.normalisation)


def _write_image_processor(kind: Family, out: Path, limits: Fields) -> None:
    """Write preprocessor_config.json, which loaders want besides processor_config.json."""
    _image_processor(kind, limits).save_pretrained(out)
    _update_json(out / "preprocessor_config.json", processor_class=kind.processor.__name__)


def _update_json(path: Path, **values: object) -> None:
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values})


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Write a folder with a tiny random model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = build(options.out, seed=options.seed, family=options.family)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
