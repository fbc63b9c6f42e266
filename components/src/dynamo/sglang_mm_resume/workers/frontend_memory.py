# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that the frontend has decoded, read out of its memory by Dynamo's own reader."""

import asyncio
from typing import Any

from dynamo.common.multimodal.image_loader import DECODED_VARIANT_KEY, ImageLoader
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.messages import Lent
from dynamo.sglang_mm_resume.workers.decoding import MAX_PIXELS, PixelsHeld, Unusable


class FrontendMemory:
    """Reads pictures. The reader is made for the first of them: most graphs have none."""

    def __init__(self, held: PixelsHeld, timeout_s: float) -> None:
        self._held = held
        self._timeout_s = timeout_s
        self._reader: ImageLoader | None = None
        self._reads: set[asyncio.Task[Image.Image]] = set()

    async def picture(self, lent: Lent) -> Image.Image:
        """RGB. Raises `Unusable`, `Refused` as OVERLOADED, or `TransferFailed`."""
        height, width, channels = lent.shape
        if channels not in (1, 3, 4):
            raise Unusable(f"the picture has {channels} channels: send it as RGB")
        if height * width > MAX_PIXELS:
            raise Unusable(f"the picture has more than {MAX_PIXELS} pixels: send a smaller one")
        # NIXL cannot take a read back: one that nobody waits for any more keeps its memory.
        read = asyncio.ensure_future(self._read(lent, height * width))
        self._reads.add(read)
        read.add_done_callback(self._end)
        await asyncio.wait({read}, timeout=self._timeout_s)
        if not read.done():
            raise TransferFailed(f"the frontend's memory was not read within {self._timeout_s:g} s")
        return read.result()

    def _end(self, read: "asyncio.Task[Image.Image]") -> None:
        self._reads.discard(read)
        if not read.cancelled():
            read.exception()  # seen, even if nobody waits for it any more

    async def _read(self, lent: Lent, pixels: int) -> Image.Image:
        if self._reader is None:
            self._reader = ImageLoader(enable_frontend_decoding=True)
        description: dict[str, Any] = lent.model_dump()
        with self._held.during_life_of(pixels) as keep:
            try:
                [picture] = await self._reader.load_image_batch(
                    [{DECODED_VARIANT_KEY: description}]
                )
            except Exception as error:  # NIXL's, wrapped or not: the frontend may be gone
                text = f"the frontend's memory cannot be read: {error!s:.200}"
                raise TransferFailed(text) from error
            return keep(picture)
