# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The processor: the OpenAI front door. Owns the request and runs the resume handshake.

It never touches a tensor and never imports SGLang or torch. Each media item of a request travels
as a transfer of its own (workers/hand_off.py); the request goes to the prefill worker when all are
sent. One that is lost is replaced by another, which goes on with the answer (workers/answer.py).
"""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from dynamo.common.backend.health_check import is_probe
from dynamo.common.utils.token_ids import normalize_request_token_ids

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.errors import Reason, Refused, ResumeError, TransferFailed
from dynamo.sglang_mm_resume.core.histogram import SECONDS, Histogram
from dynamo.sglang_mm_resume.core.messages import Media, Refusal
from dynamo.sglang_mm_resume.transport.rpc import PeerUnreachable, ProbeTotals
from dynamo.sglang_mm_resume.workers.adaptive import AdaptiveEncode, NoLocalVision
from dynamo.sglang_mm_resume.workers.answer import Answer
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.disagg import PrefillDecode
from dynamo.sglang_mm_resume.workers.errors import (
    is_draining,
    is_unavailable,
    is_without_vision,
    relayed,
    to_http,
)
from dynamo.sglang_mm_resume.workers.grammars import require_bounded
from dynamo.sglang_mm_resume.workers.hand_off import (
    SLACK_S,
    Destination,
    HandOff,
    Item,
    NoEncodeWorker,
    Peers,
    PrefillFailed,
)
from dynamo.sglang_mm_resume.workers.kv_router import Choice, KvRouting, Router
from dynamo.sglang_mm_resume.workers.lifecycle import RequestStopped, until_stopped
from dynamo.sglang_mm_resume.workers.numbers import Numbers
from dynamo.sglang_mm_resume.workers.request import (
    LOCAL_MEDIA_KEY,
    Placeholders,
    carrying,
    media_of,
    names_of,
    num_choices,
    priority_of,
    warm_up_request,
    without_media,
)
from dynamo.sglang_mm_resume.workers.sizes import ImageRule, KnownSizes

logger = logging.getLogger(__name__)

#: The engine's limit before a prefill worker has named it.
UNKNOWN_LENGTH = 2**31
#: Pairs of workers that are warmed up at start; in a larger graph the rest meet on first use.
MAX_WARM_UPS = 16
#: A request is served by one prefill worker, and by another if that one fails.
MAX_ATTEMPTS = 2
#: How Dynamo's handlers call an answer that SGLang has aborted.
CANCELLED: Final = "cancelled"
#: Workers that may answer a part of a request each. What brings engines down must come to an end.
MAX_PARTS = 4


@dataclass(frozen=True, slots=True)
class Route:
    """The workers a request must use; `None` leaves the choice."""

    prefill: int | None = None
    encode: int | None = None


ANY_ROUTE = Route()


@dataclass(slots=True)
class ProcessorTotals:
    """Counters and histograms since the start; metrics.py says what each is."""

    requests: int = 0
    stopped: int = 0
    prefill_retries: int = 0
    answers_continued: int = 0
    encode_fallbacks: int = 0
    items_local: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first_token_seconds: dict[str, Histogram] = field(
        default_factory=lambda: {media: Histogram(SECONDS) for media in ("yes", "no")}
    )


class Processor:
    """Serves the frontend's requests."""

    def __init__(
        self,
        settings: Settings,
        peers: Peers,
        placeholders: Placeholders,
        numbers: Numbers,
        prefill_decode: PrefillDecode | None = None,
        media_tokens: Collection[int] = (),
        image_rule: ImageRule | None = None,
        kv_router: Router | None = None,
        page_size: int = 1,
    ) -> None:
        """`media_tokens`: all ids that stand for media in a prompt, placeholders among them."""
        self.totals = ProcessorTotals()
        self._settings = settings
        self._peers = peers
        self._placeholders = placeholders
        self._numbers = numbers
        self._media_tokens = {*placeholders.values(), *media_tokens}
        self._prefill_decode = prefill_decode
        self._chunks = prefill_decode.chunks if prefill_decode else self._aggregated
        self._prefill = (
            prefill_decode.prefill
            if prefill_decode
            else Workers("prefill", peers.prefill, peers.prefill_transfer, settings)
        )
        self._prefill_workers = LeastOutstanding(
            peers.prefill_transfer,
            "prefill",
            settings.max_requests,
            settings.bootstrap_timeout_s,
            self._prefill.answers_ping,
        )
        sizes = KnownSizes(image_rule)
        self._kv_routing = KvRouting(kv_router, page_size, placeholders.values(), sizes)
        self._adaptive = AdaptiveEncode(settings, sizes, peers.prefill_transfer)
        self._hand_off = HandOff(settings, peers, self._prefill_workers, sizes)
        self._live = 0

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one request of the frontend, in its own chunk format."""
        if is_probe(request):
            yield {"token_ids": [], "finish_reason": "stop", "index": 0}
            return
        if context.is_stopped():
            return
        self.totals.requests += 1
        self._live += 1
        has_media = "yes" if request.get("multi_modal_data") else "no"
        first_token = tracing.Span(self.totals.first_token_seconds[has_media])
        try:
            self._require_room()
            async for chunk in self._answer(request, context):
                if chunk.get("token_ids"):
                    first_token.end()
                yield chunk
        except RequestStopped:
            self.totals.stopped += 1
        except ResumeError as error:
            self.totals.errors[Refusal.of(error).reason] += 1
            logger.warning("request %s: %s", context.id(), error)
            raise to_http(error) from error
        except Exception:
            self.totals.errors["downstream"] += 1
            raise
        finally:
            self._live -= 1

    async def warm_up(self, context: Any) -> None:
        """One tiny picture through every pair of workers, so that peers have met, NIXL has
        connected and towers are warm before the first user comes. Raises what a user would see.
        """
        prefill_ids = sorted(self._peers.prefill_transfer.instance_ids())
        encode_ids = sorted(self._peers.encode_transfer.instance_ids())
        for pair in list(itertools.product(prefill_ids, encode_ids))[:MAX_WARM_UPS]:
            async with asyncio.timeout(self._settings.bootstrap_timeout_s + SLACK_S):
                request = warm_up_request(self._placeholders["image"])
                async for _chunk in self._answer(request, context, Route(*pair)):
                    pass

    async def finish(self) -> None:
        """Wait until everything that was given up is given back."""
        await self._prefill_workers.close()
        if self._prefill_decode is not None:
            await self._prefill_decode.close()
        await self._hand_off.finish()

    def status(self) -> dict[str, Any]:
        """What operators and tests look at; every number is current."""
        parts = (self.totals, self._hand_off.totals, self._kv_routing.totals)
        totals = {name: value for part in parts for name, value in asdict(part).items()}
        return {
            "role": "processor",
            "requests": self._live,
            "items_waiting": self._items_waiting(),
            "tasks": len(self._hand_off.background),
            "limits": self._settings.limits,
            "totals": {
                **totals,
                "errors": dict(self.totals.errors),
                "peer_probes": {role: asdict(found) for role, found in self._probes().items()},
            },
        }

    def _items_waiting(self) -> dict[str, int]:
        """Work that waits for a worker of a role that has room."""
        waiting = {
            "encode": self._hand_off.num_waiting,
            "prefill": self._prefill_workers.num_waiting,
        }
        if self._prefill_decode is not None:
            waiting["decode"] = self._prefill_decode.num_waiting
        return waiting

    def _probes(self) -> dict[str, ProbeTotals]:
        """By the role of those that were probed."""
        probes = {"encode": self._hand_off.probes, "prefill": self._prefill.probes}
        if self._prefill_decode is not None:
            probes["decode"] = self._prefill_decode.decode.probes
        return probes

    def _require_room(self) -> None:
        """Beyond the limit a client hears at once that it must come again (R7)."""
        limit = self._settings.max_requests
        if self._live > limit:
            raise Refused(
                Reason.OVERLOADED,
                f"{limit} requests are under way already (--mm-resume-max-requests): "
                "try again later",
            )

    async def _answer(
        self, request: dict[str, Any], context: Any, route: Route = ANY_ROUTE
    ) -> AsyncGenerator[dict[str, Any], None]:
        """By one prefill worker; if that fails, by another, which goes on where it ended."""
        normalize_request_token_ids(request)
        self._numbers.require_possible(request)
        require_bounded(request)
        media = media_of(request, self._placeholders, self._settings.max_media_items)
        small = route == ANY_ROUTE and await self._adaptive.is_small(media)
        if media and not small:
            self._hand_off.require_room()
        async with self._kv_routing.choose(request, media) as choice:
            async for chunk in self._answer_by(request, media, small, choice, context, route):
                yield chunk

    async def _answer_by(
        self,
        request: dict[str, Any],
        media: list[Media],
        small: bool,
        choice: Choice,
        context: Any,
        route: Route,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """By the choice, where it can be used. `small`: its engine encodes the media itself."""
        answer = Answer(request, self._media_tokens)
        tried: set[int] = set()
        while True:
            async with self._prefill_workers.borrow(route.prefill, tried, choice.worker) as prefill:
                tried.add(prefill)
                await choice.served_by(prefill)
                part = answer.next_part()
                try:
                    here = small and self._adaptive.can_encode(prefill)
                    attempt = self._locally if here else self._attempt
                    async for chunk in attempt(part, media, prefill, context, route):
                        await choice.prefilled()
                        yield answer.add(chunk)
                    return
                except PrefillFailed as error:
                    if error.is_no_attempt:
                        tried.discard(prefill)  # it is not chosen again
                        answer.take_part_back()
                    elif answer.has_progressed:
                        tried = {prefill}
                    final = len(tried) == MAX_ATTEMPTS or answer.num_parts == MAX_PARTS
                    alone = route.prefill is not None or not self._prefill_workers.has_other(tried)
                    if final or alone:
                        raise error.cause from error
                    if not error.is_no_attempt:
                        self._count_another(answer, error, context)

    def _count_another(self, answer: Answer, error: PrefillFailed, context: Any) -> None:
        """Another prefill worker is to go on; raises the error where it could not."""
        hindrances = ", ".join(answer.hindrances())
        if hindrances:
            logger.warning("request %s cannot go on elsewhere: %s", context.id(), hindrances)
            raise error.cause from error
        if not answer.begun:
            logger.warning("request %s goes to another prefill worker: %s", context.id(), error)
            self.totals.prefill_retries += 1
            return
        logger.warning(
            "request %s goes on at another prefill worker, after %d tokens: %s",
            context.id(),
            len(answer.token_ids),
            error,
        )
        self.totals.answers_continued += 1

    async def _locally(
        self, request: dict[str, Any], media: list[Media], prefill: int, context: Any, route: Route
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The engine encodes the media itself. Raises as `_attempt` does."""
        try:
            forwarded = without_media(request) | _for_engine(media)
            async for chunk in self._relay(forwarded, prefill, context):
                yield chunk
        except NoLocalVision:
            self._adaptive.cannot_encode(prefill)
            async for chunk in self._attempt(request, media, prefill, context, route):
                yield chunk
        else:
            self.totals.items_local += len(media)

    async def _attempt(
        self, request: dict[str, Any], media: list[Media], prefill: int, context: Any, route: Route
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Raises `PrefillFailed` for what another prefill worker might do better."""
        forwarded = without_media(request)
        items = [
            Item(name, item, route.encode)
            for name, item in zip(names_of(media), media, strict=True)
        ]
        complete = False
        try:
            if items:
                forwarded |= await self._hand_over(items, request, prefill, context)
            async for chunk in self._relay(forwarded, prefill, context):
                yield _with_statistics(chunk, items)
            complete = True
        finally:
            if not complete:
                self._hand_off.give_back(items, prefill)

    async def _hand_over(
        self, items: list[Item], request: dict[str, Any], prefill: int, context: Any
    ) -> dict[str, Any]:
        """What the prefill worker must know of the request's media, once it has them."""
        budget = PromptBudget(len(request["token_ids"]), UNKNOWN_LENGTH)
        destination = Destination(prefill, budget, priority_of(request))
        try:
            await until_stopped(context, self._hand_off.move(items, destination))
        except NoEncodeWorker as error:
            # A decode worker would not know the sizes of pictures that it has not seen encoded.
            if self._settings.encode_fallback != "local" or self._prefill_decode is not None:
                raise
            logger.warning("request %s is encoded by the engine: %s", context.id(), error)
            self.totals.encode_fallbacks += 1
            self._hand_off.give_back(items, prefill)
            local = _for_engine(item.media for item in items)
            items.clear()  # nothing of them is left to give back
            return local
        return carrying([item.received for item in items])

    async def _relay(
        self, request: dict[str, Any], prefill: int, context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The engine's chunks. A stream without an end is an error, not an answer (R14)."""
        unfinished = set(range(num_choices(request)))
        first_token = tracing.span(
            "first_token", self._hand_off.totals.stage_seconds["first_token"]
        )
        try:
            async for chunk in self._chunks(request, prefill, context):
                if chunk.get("token_ids"):
                    first_token.end()
                if chunk.get("finish_reason") == CANCELLED and not context.is_stopped():
                    raise _aborted(request)
                if chunk.get("finish_reason"):
                    unfinished.discard(chunk.get("index") or 0)
                yield chunk
        except Exception as error:
            if isinstance(error, PeerUnreachable):
                self._prefill_workers.suspect(prefill)
            elif is_draining(error):
                self._prefill_workers.drains(prefill)
            if context.is_stopped():
                raise RequestStopped from error
            raise _of_prefill(error, prefill) from error
        finally:
            first_token.abandon()
        if unfinished and not context.is_stopped():
            raise PrefillFailed(
                TransferFailed(f"the answer of prefill worker {prefill} ended early")
            )

    async def _aggregated(
        self, request: dict[str, Any], prefill: int, context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a prefill worker that decodes as well."""
        async for chunk in await self._prefill.start(prefill, request, context):
            yield chunk


def _for_engine(media: Iterable[Media]) -> dict[str, Any]:
    """What the prefill worker must know of media that its engine is to encode."""
    return {LOCAL_MEDIA_KEY: [item.model_dump() for item in media]}


def _aborted(request: dict[str, Any]) -> ResumeError:
    """SGLang gives no reason. For guided decoding only one is known."""
    if (request.get("sampling_options") or {}).get("guided_decoding"):
        return Refused(
            Reason.BAD_REQUEST,
            "what guides the answer (response_format, guided_..., tools) allows no further token: "
            "let it allow an end, and more than min_tokens or ignore_eos ask for",
        )
    return TransferFailed("the engine aborted the request")


def _of_prefill(error: Exception, prefill: int) -> Exception:
    """503 says that the worker cannot serve now; all else would be the same elsewhere."""
    if is_without_vision(error):
        return NoLocalVision(prefill)
    if is_draining(error):
        return PrefillFailed(Refused(Reason.DRAINING, f"prefill worker {prefill} shuts down"))
    if isinstance(error, TransferFailed):
        return PrefillFailed(error)
    if isinstance(error, Refused) and error.reason is Reason.DRAINING:
        return PrefillFailed(error)  # a decode worker
    if isinstance(error, ResumeError):
        return error
    return PrefillFailed(relayed(error)) if is_unavailable(error) else relayed(error)


def _with_statistics(chunk: dict[str, Any], items: list[Item]) -> dict[str, Any]:
    """The last chunk says how the embeddings travelled; clients ask for `engine_data` to see it."""
    if not items or not chunk.get("finish_reason"):
        return chunk
    statistics = {
        **_tokens_by_modality(items),
        "rounds": sum(item.handshake.rounds for item in items),
        "bytes": sum(item.handshake.num_bytes for item in items),
        "wait_ms": round(1e3 * max(item.waited_s for item in items), 3),
    }
    engine_data = {**(chunk.get("engine_data") or {}), "mm_resume": statistics}
    return {**chunk, "engine_data": engine_data}


def _tokens_by_modality(items: list[Item]) -> dict[str, int]:
    tokens = dict.fromkeys(("image_tokens", "video_tokens"), 0)
    for item in items:
        tokens[f"{item.media.modality}_tokens"] += item.handshake.total_tokens or 0
    return tokens
