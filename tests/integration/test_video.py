# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Over HTTP: videos, alone and among pictures, on Qwen3-VL, whose prompt spells the seconds of a
video's frames.

The frames are of a size that neither SGLang nor transformers scales, and survive their compression
unchanged, so that transformers can be shown the same.
"""

from __future__ import annotations

import io

import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.conftest import Models
from tests.support import videos
from tests.support.client import Answer
from tests.support.deployments import QWEN3_VL
from tests.support.exact import assert_exact
from tests.support.items import Item, ask_about, expected
from tests.support.oracle import Clip, Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status

DEPLOYMENT = QWEN3_VL

TOKEN_BYTES = 3 * 128 * 4  # the hidden width, and two deepstack levels, float32
#: Of a step of two frames, 448 by 224 pixels: a token covers a square of 32.
STEP_TOKENS = 14 * 7

needs_ffmpeg = pytest.mark.skipif(not videos.AVAILABLE, reason=videos.MISSING)


@pytest.fixture(scope="module")
def oracle(models: Models) -> Oracle:
    """Transformers on the same weights."""
    return Oracle(models[DEPLOYMENT.model])


@needs_ffmpeg
def test_a_video(stack: LocalStack, oracle: Oracle) -> None:
    clip = Clip(videos.patchwork_frames(1, 4), fps=2)
    answer = ask_about(stack, [clip])
    assert_exact(answer, expected(oracle, [clip]))
    moved = _moved(answer)
    assert (moved["image_tokens"], moved["video_tokens"]) == (0, 2 * STEP_TOKENS)
    assert moved["bytes"] == moved["video_tokens"] * TOKEN_BYTES


@needs_ffmpeg
def test_images_and_videos_in_one_request_keep_their_order(
    stack: LocalStack, oracle: Oracle
) -> None:
    image, other = patchwork(31, 8, 8), patchwork(32, 8, 16)
    clip, longer = Clip(videos.patchwork_frames(2, 4), 2), Clip(videos.patchwork_frames(3, 8), 2)
    orders: list[list[Item]] = [[image, clip], [clip, image], [longer, other, image, clip]]
    for order in orders:
        assert_exact(ask_about(stack, order), expected(oracle, order))


@needs_ffmpeg
def test_the_seconds_of_its_frames_are_the_videos_own(stack: LocalStack, oracle: Oracle) -> None:
    """The same frames at another rate are another prompt, and another video to the caches."""
    frames = videos.patchwork_frames(4, 4)
    for fps in (2, 1):
        clip = Clip(frames, fps)
        assert_exact(ask_about(stack, [clip]), expected(oracle, [clip]))


@needs_ffmpeg
def test_a_video_that_comes_again_is_found(stack: LocalStack, oracle: Oracle) -> None:
    frames = videos.patchwork_frames(6, 4)
    # One file: each that is written has a random id of its own in it.
    clip = Clip(frames, 2, videos.video_data_url(videos.lossless(frames, 2)))
    right = expected(oracle, [clip])
    encodes = []
    for _ in range(2):
        answer = ask_about(stack, [clip])
        assert_exact(answer, right)
        encodes.append(status(stack, "encode")["totals"]["encodes"])
    assert encodes[0] == encodes[1]
    assert answer.usage is not None
    assert answer.usage["prompt_tokens_details"]["cached_tokens"] > 2 * STEP_TOKENS


def test_a_sequence_of_pictures_is_a_video(stack: LocalStack, oracle: Oracle) -> None:
    """It needs no video library."""
    jpegs = videos.jpegs(videos.patchwork_frames(7, 5))
    frames = [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs]
    clip = Clip([*frames, frames[-1]], fps=2, url=videos.frames_data_url(jpegs))
    assert_exact(ask_about(stack, [clip]), expected(oracle, [clip]))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param("data:video/mp4;base64,AAAA", "cannot be decoded", marks=needs_ffmpeg),
        ("data:video/jpeg;base64,AAAA", "frame 1: "),
    ],
    ids=["no-video", "no-frames"],
)
def test_a_bad_video_is_refused_by_its_name(stack: LocalStack, url: str, says: str) -> None:
    items: list[Item] = [patchwork(33, 8, 8), Clip([], 2, url)]
    answer = ask_about(stack, items)
    assert answer.status == 400
    assert answer.error_message.startswith("video 1: "), answer.error
    assert says in answer.error_message


def _moved(answer: Answer) -> dict[str, int]:
    assert answer.engine_data is not None
    moved: dict[str, int] = answer.engine_data["mm_resume"]
    return moved
