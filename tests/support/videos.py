# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Compressed videos, made of pictures by FFmpeg's libraries."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

try:
    from torchcodec.encoders import VideoEncoder
except (ImportError, RuntimeError):  # the latter without the libraries
    VideoEncoder = None

AVAILABLE = VideoEncoder is not None
MISSING = "FFmpeg's libraries are not installed: they are part of Debian's package ffmpeg"


def mp4(frames: Sequence[Image.Image], frames_per_second: float) -> bytes:
    """The pictures, all of one size and RGB, as an MP4 file."""
    stacked = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames]))
    encoder = VideoEncoder(stacked.permute(0, 3, 1, 2), frame_rate=frames_per_second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a buffer of torchcodec's own
        return bytes(encoder.to_tensor("mp4").numpy())


def video_data_url(video: bytes) -> str:
    """A video as a URL that contains it."""
    return f"data:video/mp4;base64,{base64.b64encode(video).decode('ascii')}"
