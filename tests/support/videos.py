# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Compressed videos, made of pictures by FFmpeg's libraries."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.support.pictures import patchwork

try:
    from torchcodec.encoders import VideoEncoder
except (ImportError, RuntimeError):  # the latter without the libraries
    VideoEncoder = None

AVAILABLE = VideoEncoder is not None
MISSING = "FFmpeg's libraries are not installed: they are part of Debian's package ffmpeg"


def mp4(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    """The pictures, all of one size and RGB, as an MP4 file."""
    return _encoded(frames, frames_per_second, "mp4")


def lossless(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    """The same as a Matroska file that is decoded to the very same pictures."""
    return _encoded(frames, frames_per_second, "matroska", codec="libx264rgb", crf=0)


def jpegs(frames: Sequence[Image.Image]) -> list[bytes]:
    """The pictures as JPEG files."""
    files = []
    for frame in frames:
        frame.save(buffer := io.BytesIO(), "JPEG", quality=95)
        files.append(buffer.getvalue())
    return files


def frames_data_url(pictures: Sequence[bytes]) -> str:
    """Picture files as the URL of one video."""
    return "data:video/jpeg;base64," + ",".join(base64.b64encode(p).decode() for p in pictures)


def patchwork_frames(seed: int, count: int) -> list[Image.Image]:
    """Frames that differ, of the smallest size that SGLang does not enlarge, and whose sides are
    multiples of every model's grain.
    """
    return [patchwork(100 * seed + i, 16, 8) for i in range(count)]


def _encoded(
    frames: Sequence[Image.Image], frames_per_second: float, kind: str, **options: Any
) -> bytes:
    stacked = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
    encoder = VideoEncoder(stacked.permute(0, 3, 1, 2), frame_rate=frames_per_second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a buffer of torchcodec's own
        return bytes(encoder.to_tensor(kind, **options).numpy())


def video_data_url(video: bytes) -> str:
    """A video as a URL that contains it."""
    return f"data:video/mp4;base64,{base64.b64encode(video).decode('ascii')}"
