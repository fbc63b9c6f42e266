# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that are the same for every graph, and about pictures that no cache has seen.

A picture is drawn from the text of its key, so that equal keys give equal pictures.
"""

import base64
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from benchmarks.end_to_end.graphs import MODEL_NAME
from examples.demo_model.pictures import ASK_LONG, CELL, sample

MAX_TOKENS: Final = 12

Size = tuple[int, int]
"""Width and height in pixels, multiples of 112."""


@dataclass(frozen=True)
class Question:
    """A request, ready to be sent as it is."""

    key: str
    body: bytes
    stream: bool
    expected: str | None
    """What the model was trained to answer, which goes on after the last token that is asked for;
    None for several pictures."""


class Questions:
    """Draws the requests of one graph's turn. Raises ValueError where a picture comes twice."""

    def __init__(self, turn: str) -> None:
        self._turn = turn
        self._drawn: set[str] = set()

    def draw(self, name: str, sizes: Sequence[Size], stream: bool = True) -> Question:
        """A request with one fresh picture of each size."""
        key = f"{self._turn}/{name}"
        pictures = [self._picture(f"{key}/{i}", size) for i, size in enumerate(sizes)]
        expected = pictures[0][1] if len(pictures) == 1 else None
        return Question(key, _body([url for url, _ in pictures], stream), stream, expected)

    def _picture(self, key: str, size: Size) -> tuple[str, str]:
        columns, rows = (side // CELL for side in size)
        drawn = sample(random.Random(key), columns=columns, rows=rows, question=ASK_LONG)
        url = _data_url(drawn.image)
        if url in self._drawn:
            raise ValueError(f"picture {key} was drawn before")
        self._drawn.add(url)
        return url, drawn.answer


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _body(urls: list[str], stream: bool) -> bytes:
    """Greedy, and always of `MAX_TOKENS` tokens."""
    parts: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": url}} for url in urls
    ]
    body: dict[str, object] = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": ASK_LONG}]}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body).encode()
