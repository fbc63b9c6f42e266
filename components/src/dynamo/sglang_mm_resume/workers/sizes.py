# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How many tokens a picture will have, as far as that can be told without fetching it.

A data URL has its size in its first bytes, and the model's own files say what becomes of a size.
What is behind another URL is known once an encode worker has named its length.
"""

import asyncio
import base64
import io
import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from PIL import Image

from dynamo.sglang_mm_resume.core.messages import Media, Sized

#: Characters of a data URL that are looked at. JPEG may have its size behind 64 KiB of comments;
#: WebP is read whole, so that a larger one counts as unknown.
HEADER_CHARS: Final = 2**18
#: Items that are remembered; some hundred bytes each.
REMEMBERED: Final = 2**14

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_FILES: Final = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class ImageRule:
    """From pixels to tokens, as the image processors of Qwen-VL's families have it.

    Both sides are rounded to `token_side`, then scaled until the area is in the bounds.
    """

    token_side: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def of_model(cls, folder: Path) -> Self | None:
        """From the options of its image processor; `None` where they are not of this kind."""
        options = _image_options(folder)
        size = options.get("size") or {}
        patch, merge = options.get("patch_size"), options.get("merge_size")
        smallest = options.get("min_pixels") or size.get("shortest_edge")
        largest = options.get("max_pixels") or size.get("longest_edge")
        match (patch, merge, smallest, largest):
            case (int(), int(), int(), int()):
                return cls(patch * merge, smallest, largest)
        return None

    def tokens(self, width: int, height: int) -> int:
        """Image tokens of a picture of this size."""
        side = self.token_side
        columns, rows = round(width / side), round(height / side)
        area = columns * rows * side * side
        if area > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels) * side
            columns, rows = (max(1, math.floor(length / scale)) for length in (width, height))
        elif area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height)) / side
            columns, rows = (math.ceil(length * scale) for length in (width, height))
        return columns * rows


class KnownSizes:
    """What is known of items before they are fetched. A hint: content behind URLs may change."""

    def __init__(self, rule: ImageRule | None) -> None:
        self._rule = rule
        self._seen: OrderedDict[int, Sized] = OrderedDict()

    def remember(self, media: Media, sized: Sized) -> None:
        """What an encode worker has said of it."""
        name = _name(media)
        self._seen[name] = sized
        self._seen.move_to_end(name)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def seen(self, media: Media) -> Sized | None:
        """What an encode worker has last said of it."""
        return self._seen.get(_name(media))

    async def tokens(self, media: Media) -> int | None:
        """Its tokens, if they can be told."""
        seen = self.seen(media)
        if seen is not None:
            return seen.total_tokens
        if self._rule is None or media.modality != "image":
            return None
        if media.lent is not None:
            height, width, _ = media.lent.shape
            return self._rule.tokens(width, height)
        if not media.url.startswith("data:"):
            return None
        size = await asyncio.to_thread(_size_in, media.url)
        return None if size is None else self._rule.tokens(*size)


def _image_options(folder: Path) -> Mapping[str, Any]:
    """Newer checkpoints have them inside the options of the whole processor."""
    for name in _FILES:
        if (folder / name).is_file():
            options = json.loads((folder / name).read_text())
            return dict(options.get("image_processor") or options)
    return {}


def _size_in(url: str) -> tuple[int, int] | None:
    """Width and height in a data URL's first bytes. Whatever is wrong is for others to say."""
    _, _, data = url[:HEADER_CHARS].partition(";base64,")
    try:
        content = base64.b64decode(data[: len(data) // 4 * 4], validate=True)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            return image.size
    except Exception:  # broken data makes Pillow raise almost anything
        return None


def _name(media: Media) -> int:
    return hash((media.modality, media.url))
