# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which prefill worker should have a request: the one with its beginning in the KV cache.

Dynamo's `KvRouter` knows what engines have cached, from the events that they publish, and what is
under way there. It is asked about the prompt as engines cache it: in place of each picture, as many
values as it has tokens, made of its content hash. Both are known of a picture that an encode worker
has named before. A new one is as many values of its own: without them, all requests with new
pictures would look alike and small, and go to one worker.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers.sizes import KnownSizes

logger = logging.getLogger(__name__)

#: Tokens of a picture whose size cannot be told, as work for its worker.
UNKNOWN_TOKENS: Final = 1024


class Router(Protocol):
    """The part of Dynamo's `KvRouter` that is used."""

    async def best_worker(
        self, token_ids: list[int], *, request_id: str, lora_name: str | None
    ) -> tuple[int, int, int]: ...

    async def mark_prefill_complete(self, request_id: str) -> None: ...

    async def free(self, request_id: str) -> None: ...


@dataclass(slots=True)
class RoutingTotals:
    """Counters since the start; metrics.py says what each is."""

    routed: int = 0
    routed_hits: int = 0
    routed_tokens: int = 0
    routed_overlap_tokens: int = 0
    routing_failures: int = 0


class Choice:
    """The worker that a request should have, if there is one."""

    def __init__(self, router: Router | None, worker: int | None, request_id: str) -> None:
        self.worker = worker
        self._router = router  # while it counts the request
        self._request_id = request_id
        self._is_prefilled = False

    async def served_by(self, worker: int) -> None:
        """Who has the request now. Where that is not the choice, the router counts it no longer:
        the chosen worker would look busy with it.
        """
        if worker != self.worker:
            await self.free()

    async def prefilled(self) -> None:
        """The first token is there: from now on it is decoded."""
        if self._router is not None and not self._is_prefilled:
            self._is_prefilled = True
            await _told(self._router.mark_prefill_complete(self._request_id))

    async def free(self) -> None:
        """The request is no work of the choice any more."""
        if self._router is not None:
            router, self._router = self._router, None
            await _told(router.free(self._request_id))


class KvRouting:
    """Chooses for each request; without a router, nobody."""

    def __init__(
        self,
        router: Router | None,
        block_size: int,
        placeholders: Collection[int],
        sizes: KnownSizes,
    ) -> None:
        """`block_size`: tokens per page of the engines' KV."""
        self.totals = RoutingTotals()
        self._router = router
        self._block_size = block_size
        self._placeholders = frozenset(placeholders)
        self._sizes = sizes

    @asynccontextmanager
    async def choose(
        self, request: dict[str, Any], media: Sequence[Media]
    ) -> AsyncIterator[Choice]:
        """The choice, counted as work of its worker until the block ends."""
        request_id = uuid.uuid4().hex
        worker = await self._ask(request, media, request_id)
        if self._router is None or worker is None:
            yield Choice(None, None, request_id)
            return
        choice = Choice(self._router, worker, request_id)
        try:
            yield choice
        finally:
            await choice.free()

    async def _ask(
        self, request: dict[str, Any], media: Sequence[Media], request_id: str
    ) -> int | None:
        if self._router is None:
            return None
        tokens = await self._as_cached(request["token_ids"], media)
        lora_name = (request.get("routing") or {}).get("lora_name")
        try:
            worker, _rank, overlap = await self._router.best_worker(
                tokens, request_id=request_id, lora_name=lora_name
            )
        except Exception as error:  # whatever it is: there is a choice without it
            self.totals.routing_failures += 1
            logger.warning("the KV router chooses nobody: %s", str(error) or type(error).__name__)
            return None
        self.totals.routed += 1
        self.totals.routed_hits += overlap > 0
        self.totals.routed_tokens += len(tokens)
        self.totals.routed_overlap_tokens += overlap * self._block_size
        return worker

    async def _as_cached(self, token_ids: Sequence[int], media: Sequence[Media]) -> list[int]:
        """The prompt as engines cache it; a new picture as nobody has it cached."""
        items = iter(media)
        prompt: list[int] = []
        for token in token_ids:
            if token in self._placeholders:
                prompt += await self._item(next(items))
            else:
                prompt.append(token)
        return prompt

    async def _item(self, media: Media) -> list[int]:
        sized = self._sizes.seen(media)
        if sized is not None:
            return cached_as(int(sized.short_hash, 16), sized.total_tokens)
        return cached_as(hash(media.url), await self._sizes.tokens(media) or UNKNOWN_TOKENS)


async def _told(telling: Awaitable[None]) -> None:
    """The router forgets requests with their worker; that is no matter of the answer."""
    try:
        await telling
    except Exception as error:
        logger.debug("the KV router does not know a request: %s", error)


def cached_as(content_hash: int, tokens: int) -> list[int]:
    """What stands for a picture in the keys of SGLang's prefix cache, and in its KV events."""
    return [1_000_000 + content_hash % 2**30] * tokens
