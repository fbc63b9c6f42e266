# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are all different, without loss, and of a known number of image tokens."""

from __future__ import annotations

import numpy as np
from PIL import Image

TOKEN_PIXELS = 28
"""Each image token of the test models covers a square of this many pixels."""


def patchwork(seed: int, columns: int, rows: int) -> Image.Image:
    """Random squares, one per image token, around a random colour.

    The common colour matters: many squares of pure noise look alike to a random model.
    """
    random = np.random.default_rng(seed)
    colour = random.integers(0, 256, 3)
    squares = (random.integers(0, 256, (rows, columns, 3)) + colour) // 2
    size = (columns * TOKEN_PIXELS, rows * TOKEN_PIXELS)
    return Image.fromarray(squares.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def num_tokens(image: Image.Image) -> int:
    """Image tokens of a picture whose sides are multiples of `TOKEN_PIXELS`."""
    width, height = image.size
    return (width // TOKEN_PIXELS) * (height // TOKEN_PIXELS)
