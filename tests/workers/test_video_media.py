# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/media.py` and `workers/decoding.py` with videos: from everywhere, within bounds."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dynamo.common.http import close_http_client
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.video_library import can_decode_videos
from dynamo.sglang_mm_resume.workers import decoding
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from tests.support import videos
from tests.support.client import data_url
from tests.support.pictures import patchwork
from tests.support.videos import mp4, video_data_url
from tests.support.web import Page, serve

if not videos.AVAILABLE:
    pytest.skip(videos.MISSING, allow_module_level=True)

LONG_S = 30.0
PICTURE = patchwork(1, 4, 3)
FRAMES = [patchwork(seed, 4, 3) for seed in range(8)]
VIDEO = mp4(FRAMES, frames_per_second=4)


@pytest.fixture
def loader() -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)


async def test_a_video_comes_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_MM_ALLOW_INTERNAL", "1")
    monkeypatch.setenv("DYN_MM_LOCAL_PATH", str(tmp_path))
    loader = MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)
    file = tmp_path / "v.mp4"
    file.write_bytes(VIDEO)
    asked: list[str] = []
    with serve({"/v.mp4": Page(VIDEO, "video/mp4")}, asked) as web:
        contents = [
            await loader.fetch(Media.model_construct(modality="video", url=url))
            for url in (video_data_url(VIDEO), f"{web}/v.mp4", file.as_uri())
        ]
    await close_http_client()
    assert len(asked) == 1
    assert contents == [contents[0]] * 3
    assert contents[0].data == VIDEO


async def test_a_video_is_decoded_frame_by_frame(
    loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.srt.utils.video_decoder._is_cpu_engine", lambda: True)
    video = (await loader.load(_video(VIDEO))).media
    assert isinstance(video, decoding.Video)
    assert (len(video), video.avg_fps) == (8, 4.0)
    frames = video.get_frames_as_tensor([0, 7])
    assert frames.shape == (2, 84, 112, 3)
    for frame, picture in zip(frames, (FRAMES[0], FRAMES[7]), strict=True):
        # Compression is lossy, colours most of all.
        errors = abs(frame.float().mean((0, 1)).numpy() - _mean_colour(picture))
        assert errors.max() < 6, errors


async def test_a_video_is_not_a_picture(loader: MediaLoader) -> None:
    picture = await loader.fetch(Media(modality="image", url=data_url(PICTURE)))
    same_bytes = Media.model_construct(
        modality="video", url=data_url(PICTURE).replace("image/", "video/")
    )
    as_video = await loader.fetch(same_bytes)
    assert as_video.data == picture.data
    assert as_video.content_hash != picture.content_hash
    for wrong, said in (
        (Media(modality="image", url=video_data_url(VIDEO)), "must be an image: data:image/png"),
        (
            Media.model_construct(modality="video", url=data_url(PICTURE)),
            "must be a video: data:video/mp4",
        ),
        (same_bytes, "1 frame"),
    ):
        assert said in (await _refused(loader, wrong)).message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (VIDEO[: len(VIDEO) // 2], "cannot be decoded"),
        (b"no video" * 100, "cannot be decoded"),
        (b"", "video is empty"),
        (mp4(FRAMES[:1], 4), "1 frame"),
    ],
    ids=["half", "text", "empty", "one-frame"],
)
async def test_no_video_is_the_client_s_fault(loader: MediaLoader, data: bytes, said: str) -> None:
    refused = await _refused(loader, _video(data))
    assert said in refused.message
    assert ".cpp" not in refused.message


async def test_damage_that_shows_in_a_frame_is_the_client_s_fault(
    loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglang.srt.utils.video_decoder._is_cpu_engine", lambda: True)
    middle = VIDEO.index(b"mdat") + 8
    damaged = VIDEO[:middle] + bytes(len(VIDEO) - middle - 1500) + VIDEO[-1500:]
    video = (await loader.load(_video(damaged))).media
    with pytest.raises(decoding.Unusable, match="cannot be decoded"):
        video.get_frames_as_tensor(list(range(8)))


async def test_frames_are_counted_while_a_video_is_held(
    loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = 8 * 112 * 84  # at two frames a second it would be 4; SGLang takes that many
    monkeypatch.setattr(loader, "_held", decoding.PixelsHeld(pixels))
    held = [(await loader.load(_video(VIDEO))).media for _ in range(2)]
    assert (await _refused(loader, _video(VIDEO))).reason is Reason.OVERLOADED
    held.pop()
    held.append((await loader.load(_video(VIDEO))).media)
    monkeypatch.setattr(decoding, "MAX_VIDEO_PIXELS", pixels // 2 - 1)
    assert "shorter or smaller" in (await _refused(loader, _video(VIDEO))).message


async def test_options_decide_how_many_frames_count(monkeypatch: pytest.MonkeyPatch) -> None:
    every_frame = MediaLoader(ThreadPoolExecutor(1), "model", LONG_S, {"fps": 4})
    monkeypatch.setattr(decoding, "MAX_VIDEO_PIXELS", 8 * 112 * 84 - 1)
    assert "shorter or smaller" in (await _refused(every_frame, _video(VIDEO))).message
    await MediaLoader(ThreadPoolExecutor(1), "model", LONG_S).load(_video(VIDEO))


def test_without_ffmpeg_s_libraries_it_is_refused_by_name(tmp_path: Path) -> None:
    """Not by a mock: files in front of the real libraries that the dynamic loader cannot load."""
    for name in ("avutil", "avcodec", "avformat", "avdevice", "avfilter", "swscale", "swresample"):
        for version in range(100):
            (tmp_path / f"lib{name}.so.{version}").touch()
    program = (
        "import asyncio, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from dynamo.sglang_mm_resume.core.messages import Media\n"
        "from dynamo.sglang_mm_resume.video_library import can_decode_videos\n"
        "from dynamo.sglang_mm_resume.workers.media import MediaLoader\n"
        "async def load():\n"
        "    loader = MediaLoader(ThreadPoolExecutor(1), 'model', 9)\n"
        "    url = 'data:video/mp4;base64,AAAA'\n"
        "    try:\n"
        "        await loader.load(Media(modality='video', url=url))\n"
        "    except Exception as error:\n"
        "        print(can_decode_videos(), error.reason, error)\n"
        "asyncio.run(load())\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = answer.stdout.splitlines()[-1]
    assert said.startswith("False bad_request"), answer.stderr[-2000:]
    assert "install torchcodec and FFmpeg's libraries (Debian: ffmpeg)" in said
    assert can_decode_videos() == videos.AVAILABLE


def _video(data: bytes) -> Media:
    return Media.model_construct(modality="video", url=video_data_url(data))


def _mean_colour(picture: Image.Image) -> object:
    return np.asarray(picture, dtype=np.float32).mean((0, 1))


async def _refused(loader: MediaLoader, media: Media) -> Refused:
    with pytest.raises(Refused) as refused:
        await loader.load(media)
    return refused.value
