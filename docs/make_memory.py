# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The calculator of docs/tuning.md: what a pool takes, by the width of a model's embeddings.

python docs/make_memory.py            print it
python docs/make_memory.py --write    put it into docs/tuning.md
"""

import sys
from pathlib import Path
from typing import Final

from sections import main

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import Layout

DOCUMENT = Path(__file__).with_name("tuning.md")

#: Elements of one row, and models that have it: `hidden_size` of the text model, times one more
#: than `deepstack_visual_indexes` has entries (three in Qwen3-VL), by their own config.json.
WIDTHS: Final = {
    1280: "a small model",
    2048: "Qwen2.5-VL-3B",
    3584: "Qwen2.5-VL-7B",
    5120: "Qwen2.5-VL-32B",
    8192: "Qwen2.5-VL-72B, Qwen3-VL-2B, Qwen3-VL-30B-A3B",
    10240: "Qwen3-VL-4B",
    16384: "Qwen3-VL-8B, Qwen3-VL-235B-A22B",
}
DTYPE: Final = "bfloat16"
#: Default grants of the scenarios, in tokens.
GRANTS: Final = (512, 1024, 2048)
#: Tokens of a slot without the block allocator: the longest embedding of Qwen2.5-VL.
SLOT_TOKENS: Final = 16_384
SLOTS: Final = 8


def table() -> str:
    """One row per width."""
    settings = Settings()
    pool_tokens = settings.pool_blocks * settings.block_size
    head = (
        "width",
        "models",
        "a token",
        *(f"grant of {tokens:,} tokens" for tokens in GRANTS),
        f"pool of {pool_tokens:,} tokens",
        f"{SLOTS} slots of {SLOT_TOKENS:,} tokens",
        f"tokens in {settings.max_assembled_mib:,} MiB",
    )
    rows = [head, tuple("---" for _ in head)]
    for width, models in WIDTHS.items():
        token = token_bytes(width)
        rows.append(
            (
                f"{width:,}",
                models,
                f"{token / 2**10:g} KiB",
                *(mib(token * tokens) for tokens in GRANTS),
                mib(token * pool_tokens),
                mib(token * SLOTS * SLOT_TOKENS),
                f"{settings.max_assembled_mib * 2**20 // token:,}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def token_bytes(width: int) -> int:
    """Bytes of one row, as the workers count them."""
    layout = Layout(model="any", width=width, dtype=DTYPE, block_size=Settings().block_size)
    return layout.token_bytes


def mib(num_bytes: int) -> str:
    """Whole MiB, or as many decimals as it takes."""
    return f"{num_bytes / 2**20:,g} MiB"


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "memory", table()))
