# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Two different images that SGLang's prefix cache would take for one, as anybody can make them."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from itertools import count, islice

from PIL import Image

from dynamo.sglang_mm_resume.workers.media import content_hash_of

NAMES = 2**30
CANDIDATES = 2**16
"""Of the first image; the second then meets one of them within some 2^14 tries."""
_IEND_BYTES = 12


def colliding_pngs(identity: str, first: Image.Image, second: Image.Image) -> tuple[bytes, bytes]:
    """Files of both, whose content hashes agree in the bits that pad values are made of.

    `identity`: `content_identity` of the worker that loads them. Takes a second.
    """
    known = {_name(identity, png): png for png in islice(_variants(first), CANDIDATES)}
    return next(
        (known[n], png) for png in _variants(second) if (n := _name(identity, png)) in known
    )


def png_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _name(identity: str, png: bytes) -> int:
    return int(content_hash_of(identity, "image", png)[:16], 16) % NAMES


def _variants(image: Image.Image) -> Iterator[bytes]:
    """The image as PNG, with a counter in a comment."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    png = buffer.getvalue()
    head, end = png[:-_IEND_BYTES], png[-_IEND_BYTES:]
    for number in count():
        chunk = b"tEXtn\0%08d" % number
        length, crc = (n.to_bytes(4, "big") for n in (len(chunk) - 4, zlib.crc32(chunk)))
        yield head + length + chunk + crc + end
