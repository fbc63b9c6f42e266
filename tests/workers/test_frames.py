# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Videos that are a sequence of pictures: `data:video/jpeg;base64,FRAME,FRAME,...`."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers import decoding
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from tests.support.pictures import patchwork
from tests.support.videos import frames_data_url, jpegs

PICTURES = jpegs([patchwork(seed, 4, 3) for seed in range(5)])


def _loader(**options: float) -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(1), "model", 30.0, options)


async def _load(url: str, **options: float) -> decoding.Frames:
    frames = (await _loader(**options).load(Media(modality="video", url=url))).media
    assert isinstance(frames, decoding.Frames)
    return frames


async def test_every_picture_is_a_frame() -> None:
    frames = await _load(frames_data_url(PICTURES[:4]))
    assert (len(frames), frames.avg_fps, frames.frame_shape) == (4, 2.0, (84, 112))
    expected = [np.asarray(Image.open(io.BytesIO(picture))) for picture in PICTURES[:4]]
    assert torch.equal(
        frames.get_frames_as_tensor([0, 1, 2, 3]), torch.from_numpy(np.stack(expected))
    )


async def test_the_last_of_an_odd_number_comes_twice() -> None:
    frames = await _load(frames_data_url(PICTURES))
    assert len(frames) == 6
    four, five = frames.get_frames_as_tensor([4, 5])
    assert torch.equal(four, five)


async def test_sglang_takes_all_of_them() -> None:
    """At whatever rate it takes frames."""
    from sglang.srt.multimodal.processors.qwen_vl import smart_nframes

    for fps in (0.5, 2.0, 8.0):
        frames = await _load(frames_data_url(PICTURES[:4]), fps=fps)
        options = {"fps": fps, "min_frames": 4, "max_frames": 768}
        assert smart_nframes(options, len(frames), frames.avg_fps) == 4


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([PICTURES[0], b"no picture"], "frame 2: cannot be decoded"),
        ([PICTURES[0], *jpegs([patchwork(9, 5, 3)])], "frame 2: is of another size"),
        ([PICTURES[0], b""], "frame 2: "),
    ],
    ids=["undecodable", "another-size", "empty"],
)
async def test_a_bad_frame_is_named(files: list[bytes], says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        await _load(frames_data_url(files))
    assert refused.value.reason is Reason.BAD_REQUEST


async def test_a_frame_that_is_not_base64_is_named() -> None:
    with pytest.raises(Refused, match="frame 2: "):
        await _load(frames_data_url(PICTURES[:1]) + ",%%%")


async def test_frames_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_VIDEO_PIXELS", 3 * 84 * 112)
    assert len(await _load(frames_data_url(PICTURES[:2]))) == 2
    with pytest.raises(Refused, match="send fewer"):
        await _load(frames_data_url(PICTURES[:4]))


async def test_the_same_text_is_no_picture() -> None:
    media = Media(modality="image", url=frames_data_url(PICTURES))
    with pytest.raises(Refused, match="must be an image"):
        await _loader().load(media)
