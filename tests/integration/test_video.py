# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Over HTTP: videos, alone and among pictures, on Qwen3-VL, whose prompt spells the seconds of a
video's frames.

The frames are of a size that neither SGLang nor transformers scales, and survive their compression
unchanged, so that transformers can be shown the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.conftest import Models
from tests.support import videos
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, QWEN3_VL
from tests.support.exact import assert_exact
from tests.support.oracle import Clip, Oracle
from tests.support.pictures import patchwork

pytestmark = pytest.mark.skipif(not videos.AVAILABLE, reason=videos.MISSING)

DEPLOYMENT = QWEN3_VL

MAX_TOKENS = 12
QUESTION = "What is this?"
TEXT = {"type": "text", "text": QUESTION}
TOKEN_BYTES = 3 * 128 * 4  # the hidden width, and two deepstack levels, float32
#: Of a step of two frames, 448 by 224 pixels: a token covers a square of 32.
STEP_TOKENS = 14 * 7


@pytest.fixture(scope="module")
def oracle(models: Models) -> Oracle:
    """Transformers on the same weights."""
    return Oracle(models[DEPLOYMENT.model])


def test_a_video(stack: LocalStack, oracle: Oracle) -> None:
    clip = Clip(videos.patchwork_frames(1, 4), fps=2)
    answer = _ask(stack, [clip])
    assert_exact(answer, _expected(oracle, [clip]))
    moved = _moved(answer)
    assert (moved["image_tokens"], moved["video_tokens"]) == (0, 2 * STEP_TOKENS)
    assert moved["bytes"] == moved["video_tokens"] * TOKEN_BYTES


def test_images_and_videos_in_one_request_keep_their_order(
    stack: LocalStack, oracle: Oracle
) -> None:
    image, other = patchwork(31, 8, 8), patchwork(32, 8, 16)
    clip, longer = Clip(videos.patchwork_frames(2, 4), 2), Clip(videos.patchwork_frames(3, 8), 2)
    for order in ([image, clip], [clip, image], [longer, other, image, clip]):
        answer = _ask(stack, order)
        assert_exact(answer, _expected(oracle, order))


def _ask(stack: LocalStack, items: list[Image.Image | Clip], **extra: Any) -> Answer:
    content = [*(_part(item) for item in items), TEXT]
    messages = [{"role": "user", "content": content}]
    return ask(
        stack.base_url, MODEL_NAME, [], "", MAX_TOKENS, logprobs=True, messages=messages, **extra
    )


def _part(item: Image.Image | Clip) -> dict[str, Any]:
    if isinstance(item, Clip):
        url = videos.video_data_url(videos.lossless(item.frames, item.fps))
        return {"type": "video_url", "video_url": {"url": url}}
    return {"type": "image_url", "image_url": {"url": data_url(item)}}


def _expected(oracle: Oracle, items: list[Image.Image | Clip]) -> Any:
    kinds = [{"type": "video" if isinstance(item, Clip) else "image"} for item in items]
    return oracle.chat(
        [{"role": "user", "content": [*kinds, TEXT]}],
        [item for item in items if not isinstance(item, Clip)],
        MAX_TOKENS,
        videos=[item for item in items if isinstance(item, Clip)],
    )


def _moved(answer: Answer) -> dict[str, int]:
    assert answer.engine_data is not None
    moved: dict[str, int] = answer.engine_data["mm_resume"]
    return moved
