# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which requests are too small for an encode worker: their engine encodes them faster itself.

A request is encoded in one place, whatever its items: an engine that gets a picture and an
embedding of one request raises, and its scheduler is gone.
"""

import logging
from collections.abc import Sequence

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.transport.rpc import Client
from dynamo.sglang_mm_resume.workers.sizes import KnownSizes

logger = logging.getLogger(__name__)


class NoLocalVision(Refused):
    """A prefill worker was started without a vision tower, and must be sent embeddings."""

    def __init__(self, prefill: int) -> None:
        super().__init__(
            Reason.OVERLOADED,
            f"no encode worker can be used, and prefill worker {prefill} has no vision tower "
            "(--no-local-vision)",
        )


class AdaptiveEncode:
    """The policy of `--encode-min-tokens` and `--encode-min-items`."""

    def __init__(self, settings: Settings, sizes: KnownSizes, prefill: Client) -> None:
        self._min_tokens = settings.encode_min_tokens
        self._min_items = settings.encode_min_items
        self._sizes = sizes
        self._prefill = prefill
        self._blind: set[int] = set()

    async def is_small(self, media: Sequence[Media]) -> bool:
        """Whether the engine is to encode all items of a request; what is unknown is not small."""
        if not media or (self._min_tokens is None and self._min_items is None):
            return False
        if any(item.modality != "image" for item in media):
            return False
        if self._min_items is not None and len(media) >= self._min_items:
            return False
        return self._min_tokens is None or await self._fewer_tokens(media, self._min_tokens)

    def can_encode(self, prefill: int) -> bool:
        """Whether a prefill worker has a tower, as far as it has not said otherwise."""
        return prefill not in self._blind

    def cannot_encode(self, prefill: int) -> None:
        """It has refused, as it was started without a tower."""
        logger.warning("prefill worker %s has no vision tower: it gets embeddings only", prefill)
        self._blind &= set(self._prefill.instance_ids())  # workers come and go
        self._blind.add(prefill)

    async def _fewer_tokens(self, media: Sequence[Media], limit: int) -> bool:
        total = 0
        for item in media:
            tokens = await self._sizes.tokens(item)
            total += limit if tokens is None else tokens
            if total >= limit:
                return False
        return True
