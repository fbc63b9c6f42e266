# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures and videos in one request, and the answers that they must get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from examples.local_stack import LocalStack
from tests.support import videos
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME
from tests.support.oracle import Clip, Oracle, OracleAnswer

MAX_TOKENS = 12
TEXT = {"type": "text", "text": "What is this?"}

Item = Image.Image | Clip


def ask_about(stack: LocalStack, items: Sequence[Item], **extra: Any) -> Answer:
    """The answer of a deployment to the items, in this order, and a question."""
    content = [*(part_of(item) for item in items), TEXT]
    messages = [{"role": "user", "content": content}]
    return ask(
        stack.base_url, MODEL_NAME, [], "", MAX_TOKENS, logprobs=True, messages=messages, **extra
    )


def part_of(item: Item) -> dict[str, Any]:
    """Of a message's content. A video travels without loss."""
    if isinstance(item, Clip):
        url = item.url or videos.video_data_url(videos.lossless(item.frames, item.fps))
        return {"type": "video_url", "video_url": {"url": url}}
    return {"type": "image_url", "image_url": {"url": data_url(item)}}


def expected(oracle: Oracle, items: Sequence[Item]) -> OracleAnswer:
    """What transformers answers."""
    kinds = [{"type": "video" if isinstance(item, Clip) else "image"} for item in items]
    return oracle.chat(
        [{"role": "user", "content": [*kinds, TEXT]}],
        [item for item in items if not isinstance(item, Clip)],
        MAX_TOKENS,
        videos=[item for item in items if isinstance(item, Clip)],
    )
