# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The same pictures through a real vision tower, singly and together; prints how they differ.

python -m tests.support.tower_batches  # arguments as of the encode worker
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.support.pictures import patchwork

#: In grains of a picture: 16, 30, 42 and 9 tokens.
SIZES = [(4, 4), (6, 5), (7, 6), (3, 3)]


async def _main(arguments: list[str]) -> None:
    from dynamo.sglang.args import parse_args

    from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder

    config = await parse_args(
        ["--enable-multimodal", "--disaggregation-mode", "encode", *arguments]
    )
    encoder = VisionEncoder(config.server_args, num_threads=2, max_batch=len(SIZES))
    pictures = [patchwork(i, *size) for i, size in enumerate(SIZES)]
    prepared = [await encoder.prepare(picture) for picture in pictures]
    singly = [await encoder.encode(one) for one in prepared]
    batches = encoder.batches.sizes.count
    together = await asyncio.gather(*(encoder.encode(one) for one in prepared))
    pairs = list(zip(singly, together, strict=True))
    found = {
        "tokens": [one.total_tokens for one in prepared],
        "shapes": [[list(a.shape), list(b.shape)] for a, b in pairs],
        "batches": [batches, encoder.batches.sizes.count - batches],
        "largest": max(float(a.abs().max()) for a in singly),
        "difference": max(float((a - b).abs().max()) for a, b in pairs),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
