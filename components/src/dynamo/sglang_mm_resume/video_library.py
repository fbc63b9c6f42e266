# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whether compressed videos can be decoded on this machine."""

from importlib.util import find_spec
from typing import Final

#: What is missing otherwise, and what an operator does about it.
INSTALL: Final = "install torchcodec and FFmpeg's libraries (Debian: ffmpeg) on encode workers"


def can_decode_videos() -> bool:
    """By one of the two libraries that SGLang knows. Imports torch, where it is not yet."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError):  # the latter where FFmpeg's libraries are missing
        return find_spec("decord") is not None
    return True
