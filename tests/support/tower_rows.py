# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a real vision tower makes of some pictures, into a file.

python -m tests.support.tower_rows FILE  # and arguments as of the encode worker
"""

from __future__ import annotations

import asyncio
import sys

import torch

from tests.support.pictures import patchwork

SIZES = [(4, 4), (6, 5), (7, 6), (15, 11)]


async def _main(path: str, arguments: list[str]) -> None:
    from dynamo.sglang.args import parse_args

    from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder
    from dynamo.sglang_mm_resume.workers.start_encode import ENGINE_ARGS

    config = await parse_args([*ENGINE_ARGS, *arguments])
    encoder = VisionEncoder(config.server_args, num_threads=2)
    pictures = [patchwork(i, *size) for i, size in enumerate(SIZES)]
    prepared = [await encoder.prepare(picture) for picture in pictures]
    torch.save(await asyncio.gather(*(encoder.encode(one) for one in prepared)), path)
    encoder.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2:]))
