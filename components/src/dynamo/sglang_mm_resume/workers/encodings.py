# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures on their way through the vision tower. Equal ones are encoded once: whoever comes later
finds the rows in the pool, and whoever comes meanwhile shares the work.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from dynamo.sglang_mm_resume.core.messages import Sized
from dynamo.sglang_mm_resume.transport.staging import Stored
from dynamo.sglang_mm_resume.transport.writer import Writer
from dynamo.sglang_mm_resume.workers.media import Content, MediaLoader
from dynamo.sglang_mm_resume.workers.sglang_encoder import Prepared, VisionEncoder

#: Pictures that are preprocessed ahead of the tower. Enough to keep it busy; more only take memory,
#: 12 bytes a pixel.
MAX_PREPARED: Final = 8

Rows = torch.Tensor | Stored


@dataclass(slots=True)
class EncodeTotals:
    """Counters since the start; metrics.py says what each is."""

    encodes: int = 0
    encodes_shared: int = 0


class Encodings:
    """All pictures that somebody wants encoded at this time, by content."""

    def __init__(self, encoder: VisionEncoder, media: MediaLoader, writer: Writer) -> None:
        self.totals = EncodeTotals()
        self.encoder = encoder
        self.media = media
        self.writer = writer
        self.preparing = asyncio.Semaphore(MAX_PREPARED)
        self._live: dict[str, Encoding] = {}

    @contextmanager
    def of(self, content: Content) -> Iterator["Encoding"]:
        """The encoding of these bytes, which goes on at least until the block ends."""
        encoding = self._live.get(content.content_hash)
        if encoding is None or encoding.has_failed:
            encoding = self._live[content.content_hash] = Encoding(content, self)
        else:
            self.totals.encodes_shared += 1
        encoding.num_users += 1
        try:
            yield encoding
        finally:
            encoding.num_users -= 1
            if not encoding.num_users:
                encoding.end()
                if self._live.get(content.content_hash) is encoding:
                    del self._live[content.content_hash]


class Encoding:
    """One picture, for everybody who wants it; the last of them may cancel it, no other."""

    def __init__(self, content: Content, encodings: Encodings) -> None:
        self.num_users = 0
        self._key = content.content_hash
        self._encodings = encodings
        self._prepared: Prepared | None = None
        self._stored: Stored | None = None
        self._room = ExitStack()  # among those that are prepared
        self._sizing = asyncio.ensure_future(self._prepare(content))
        self._encoding: asyncio.Task[Rows] | None = None

    async def sized(self) -> Sized:
        """Length and grid, before the tower runs. Raises `Unusable` or `Refused`."""
        return await asyncio.shield(self._sizing)

    async def rows(self) -> Rows:
        """The embedding, in the pool where it has room. Raises what the tower raises."""
        if self._encoding is None:
            self._encoding = asyncio.ensure_future(self._encode())
        return await asyncio.shield(self._encoding)

    @property
    def has_failed(self) -> bool:
        """Whoever comes now had better begin anew."""
        return any(
            task is not None and task.done() and (task.cancelled() or task.exception())
            for task in (self._sizing, self._encoding)
        )

    def end(self) -> None:
        """Nobody wants it any more. What waits for the tower is skipped."""
        for task in (self._sizing, self._encoding):
            if task is not None:
                task.cancel()
                task.add_done_callback(_mark_as_seen)
        self._room.close()
        if self._stored is not None:
            self._stored.unpin()

    async def _prepare(self, content: Content) -> Sized:
        work = self._encodings
        self._stored = work.writer.find(self._key)
        if self._stored is not None:
            return self._stored.sized
        await work.preparing.acquire()
        self._room.callback(work.preparing.release)
        self._prepared = await work.encoder.prepare(await work.media.decode(content))
        return Sized(
            total_tokens=self._prepared.total_tokens,
            grid=self._prepared.grid,
            content_hash=content.content_hash,
            timestamps=self._prepared.timestamps,
            second_per_grid=self._prepared.second_per_grid,
        )

    async def _encode(self) -> Rows:
        sized = await self.sized()
        if self._stored is not None:
            return self._stored
        if self._prepared is None:
            raise RuntimeError("an item is encoded that was neither prepared nor stored")
        rows = await self._encodings.encoder.encode(self._prepared)
        self._encodings.totals.encodes += 1
        self._prepared = None
        self._room.close()
        self._stored = self._encodings.writer.store(self._key, sized, rows)
        return rows if self._stored is None else self._stored


def _mark_as_seen(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
