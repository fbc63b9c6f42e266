# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Build a tiny Qwen2.5-VL with random weights: configuration, tokenizer, processor and model.

    python examples/demo_model/build.py --out DIR

The folder is a complete local checkpoint: transformers' Auto classes and SGLang can load it.
`train.py` starts from such a folder; tests use it where the answers need not make sense.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pictures import corpus
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PATCH = 14
MERGE = 2
TOKEN_PIXELS = PATCH * MERGE
"""Each image token covers a square of this many pixels."""
WINDOW = 8 * PATCH
"""Width of an attention window of the vision tower in pixels."""

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


def build(
    out: Path,
    *,
    seed: int,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    vision_hidden: int = 64,
    vision_depth: int = 2,
    vision_heads: int = 2,
    vocab_size: int = _DEFAULT_VOCAB,
    min_pixels: int = 56 * 56,
    max_pixels: int = 4096 * TOKEN_PIXELS**2,
    random_activation_scale: bool = True,
) -> Qwen2_5_VLForConditionalGeneration:
    """Write a float32 checkpoint with random weights to `out` and return the model.

    `vocab_size` bounds the tokenizer including its special tokens. `min_pixels` and `max_pixels`
    are the processor's limits: pictures outside are scaled. With `random_activation_scale` the
    weights are drawn so large that greedy answers depend on the picture; otherwise they are left
    as transformers draws them, which suits training.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer([*corpus(), *_EXTRA_CORPUS], vocab_size)
    build_processor(tokenizer, min_pixels, max_pixels).save_pretrained(out)
    _write_image_processor(out, min_pixels, max_pixels)
    config = build_config(
        tokenizer,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        key_value_heads=key_value_heads,
        vision_hidden=vision_hidden,
        vision_depth=vision_depth,
        vision_heads=vision_heads,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.float32)
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


def build_processor(
    tokenizer: Qwen2Tokenizer, min_pixels: int, max_pixels: int
) -> Qwen2_5_VLProcessor:
    """The processor for pictures, videos and chat messages."""
    geometry = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**limits, **geometry),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**limits, **geometry),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(
    tokenizer: Qwen2Tokenizer,
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    key_value_heads: int,
    vision_hidden: int,
    vision_depth: int,
    vision_heads: int,
) -> Qwen2_5_VLConfig:
    """The model's configuration; the last vision block attends to the whole picture."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": _round_up(len(tokenizer), _VOCAB_MULTIPLE),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": _MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "bos_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[TURN_END],
        "pad_token_id": ids[END_OF_TEXT],
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": _mrope_section(hidden_size // heads),
        },
    }
    vision = {
        "depth": vision_depth,
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_heads": vision_heads,
        "in_channels": 3,
        "in_chans": 3,
        "out_hidden_size": hidden_size,
        "patch_size": PATCH,
        "spatial_patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": WINDOW,
        "fullatt_block_indexes": [vision_depth - 1],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=False,
    )


def save_model(model: Qwen2_5_VLForConditionalGeneration, out: Path) -> None:
    """Write weights, config.json and generation_config.json."""
    config = model.config.text_config
    model.save_pretrained(out)
    _update_json(
        out / "config.json", architectures=["Qwen2_5_VLForConditionalGeneration"], dtype="float32"
    )
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": [config.eos_token_id],
            "pad_token_id": config.pad_token_id,
            "do_sample": False,
        },
    )


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
                inputs = 1 if "embed_tokens" in name else parameter[0].numel()
                std = 1 / math.sqrt(inputs)
            elif name.endswith("bias"):
                std = _BIAS_STD
            else:
                continue
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _write_image_processor(out: Path, min_pixels: int, max_pixels: int) -> None:
    """Write preprocessor_config.json, which loaders want besides processor_config.json."""
    processor = Qwen2VLImageProcessor(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
    )
    processor.save_pretrained(out)
    _update_json(out / "preprocessor_config.json", processor_class="Qwen2_5_VLProcessor")


def _update_json(path: Path, **values: object) -> None:
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values})


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Write a random-weight tiny Qwen2.5-VL folder.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = build(options.out, seed=options.seed)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.out}: {count / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
