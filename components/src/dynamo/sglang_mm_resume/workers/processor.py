# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The processor: the OpenAI front door. Owns the request and runs the resume handshake.

It never touches a tensor and never imports SGLang or torch. Each media item of a request travels
as a transfer of its own, in parallel; the request goes to the prefill worker when all are sent.
"""

import asyncio
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any

from dynamo.common.backend.health_check import is_probe
from dynamo.common.utils.token_ids import normalize_request_token_ids

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.errors import (
    RETRYABLE,
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE_CONTROL_REPLY,
    ENCODE_EVENT,
    PREFILL_REPLY,
    Abort,
    Close,
    Encode,
    Forward,
    Granted,
    Media,
    NoBlocks,
    Received,
    Refusal,
    Reserve,
    Resume,
    Sent,
    Sized,
    dump,
    parse,
)
from dynamo.sglang_mm_resume.core.transitions import Shaking
from dynamo.sglang_mm_resume.transport.rpc import (
    Client,
    PeerUnreachable,
    ask,
    each_while,
    each_within,
)
from dynamo.sglang_mm_resume.transport.tasks import Background
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding
from dynamo.sglang_mm_resume.workers.disagg import PrefillDecode
from dynamo.sglang_mm_resume.workers.errors import relayed, to_http
from dynamo.sglang_mm_resume.workers.lifecycle import RequestStopped, until_stopped
from dynamo.sglang_mm_resume.workers.probe import prober

logger = logging.getLogger(__name__)

#: Seconds for answers that need no block: a loaded loop may be slow, a dead peer must not hang us.
CONTROL_TIMEOUT_S = 5.0
#: Extra seconds over a peer's own deadline, so that the peer's own message is what we report.
SLACK_S = 2.0
#: The engine's limit before a prefill worker has named it.
UNKNOWN_LENGTH = 2**31
#: Pairs of workers that are warmed up at start; in a larger graph the rest meet on first use.
MAX_WARM_UPS = 16
#: A white square of 56 px, PNG: the smallest picture that image processors do not enlarge.
WHITE_SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAADgAAAA4CAAAAACN7WTCAAAAJUlEQVR42u3LMREAAAgE"
    "oNf+nbWC5ww7NfnpiKIoiqIoiqIoniwyIgFvCyLXLgAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True, slots=True)
class Peers:
    """Clients of the endpoints that the processor calls."""

    prefill: Client  # generate
    prefill_transfer: Client
    encode: Client  # generate
    encode_transfer: Client


@dataclass(frozen=True, slots=True)
class Route:
    """The workers a request must use; `None` leaves the choice."""

    prefill: int | None = None
    encode: int | None = None


ANY_ROUTE = Route()


@dataclass(slots=True)
class _Item:
    """One media item under way."""

    index: int
    media: Media
    handshake: Handshake
    encode: int | None  # the encode worker to use, if it must be a certain one
    sized: Sized | None = None
    waited_s: float = 0.0

    @property
    def received(self) -> Received:
        if self.sized is None:
            raise TransferFailed("the encode worker never named the embedding's size")
        return Received(
            transfer_id=self.handshake.transfer_id,
            modality=self.media.modality,
            total_tokens=self.sized.total_tokens,
            grid=self.sized.grid,
            content_hash=self.sized.content_hash,
        )


@dataclass(slots=True)
class ProcessorTotals:
    """Counters since the start, for /metrics."""

    requests: int = 0
    items: int = 0
    rounds: int = 0
    bytes: int = 0
    stopped: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Processor:
    """Serves the frontend's requests."""

    def __init__(
        self,
        settings: Settings,
        peers: Peers,
        image_token_id: int,
        prefill_decode: PrefillDecode | None = None,
    ) -> None:
        self.totals = ProcessorTotals()
        self._settings = settings
        self._peers = peers
        self._image_token_id = image_token_id
        self._prefill_decode = prefill_decode
        self._chunks = prefill_decode.chunks if prefill_decode else self._aggregated
        self._prefill_workers = LeastOutstanding(peers.prefill_transfer, "prefill")
        # By `generate`: a worker that drains leaves that first, and stays reachable for control.
        self._encode_workers = LeastOutstanding(peers.encode, "encode")
        self._background = Background()
        self._live = 0
        self._patience_s = settings.bootstrap_timeout_s + SLACK_S

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
        try:
            async for chunk in self._answer(request, context):
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
            async with asyncio.timeout(self._patience_s):
                request = _warm_up_request(self._image_token_id)
                async for _chunk in self._answer(request, context, Route(*pair)):
                    pass

    async def finish(self) -> None:
        """Wait until everything that was given up is given back."""
        await self._background.finish()

    def status(self) -> dict[str, Any]:
        """What operators and tests look at; every number is current."""
        return {
            "role": "processor",
            "requests": self._live,
            "tasks": len(self._background),
            "totals": {**asdict(self.totals), "errors": dict(self.totals.errors)},
        }

    async def _answer(
        self, request: dict[str, Any], context: Any, route: Route = ANY_ROUTE
    ) -> AsyncGenerator[dict[str, Any], None]:
        normalize_request_token_ids(request)
        if self._prefill_decode is not None:
            self._prefill_decode.check(request)
        media = media_of(request, self._image_token_id, self._settings.max_media_items)
        forwarded = without_media(request)
        with self._prefill_workers.borrow(route.prefill) as prefill:
            items = [
                _Item(i, m, Handshake(uuid.uuid4().hex), route.encode) for i, m in enumerate(media)
            ]
            complete = False
            try:
                if items:
                    budget = PromptBudget(len(request["token_ids"]), UNKNOWN_LENGTH)
                    priority = (request.get("routing") or {}).get("priority") or 0
                    await until_stopped(
                        context, self._transfer_all(items, prefill, budget, priority)
                    )
                    forwarded["mm_resume"] = [item.received.model_dump() for item in items]
                async for chunk in self._relay(forwarded, prefill, context):
                    yield _with_statistics(chunk, items)
                complete = True
            finally:
                if items and not complete:
                    self._background.start(self._abort_all(items, prefill))

    # Transfers.

    async def _transfer_all(
        self, items: list[_Item], prefill: int, budget: PromptBudget, priority: int
    ) -> None:
        """All items in parallel; the first error gives the others up."""
        tasks = [
            asyncio.ensure_future(self._transfer(item, prefill, budget, priority)) for item in items
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _transfer(
        self, item: _Item, prefill: int, budget: PromptBudget, priority: int
    ) -> None:
        """One item from its default grant to its last token."""
        with self._encode_workers.borrow(item.encode) as encode:
            try:
                await self._shake_hands(item, prefill, encode, budget, priority)
            except BaseException as error:
                self._background.start(self._give_up(item, prefill, encode))
                if isinstance(error, Refused) and error.reason is Reason.BAD_REQUEST:
                    text = f"image {item.index + 1}: {error.message}"
                    raise Refused(error.reason, text) from error
                raise
        self.totals.items += 1
        self.totals.rounds += item.handshake.rounds
        self.totals.bytes += item.handshake.num_bytes

    async def _shake_hands(
        self, item: _Item, prefill: int, encode: int, budget: PromptBudget, priority: int
    ) -> None:
        shake = item.handshake
        reserve = Reserve(
            transfer_id=shake.transfer_id, writer_instance_id=encode, priority=priority
        )
        granted = await self._ask_for_blocks(item, prefill, reserve)
        if not isinstance(granted, Granted):
            raise ProtocolError(f"prefill worker {prefill} answered a reserve with {granted!r}")
        shake.granted(granted.grant)
        budget.max_tokens = granted.max_prompt_tokens
        message = Encode(
            transfer_id=shake.transfer_id,
            media=item.media,
            grant=granted.grant,
            receiver=granted.receiver,
            prompt_tokens=budget.prompt_tokens,
            max_prompt_tokens=granted.max_prompt_tokens,
        )
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                stream = await self._peers.encode.direct(dump(message), encode, annotated=False)
            async for payload in each_within(self._patience_s, stream):
                event = parse(ENCODE_EVENT, payload)
                if isinstance(event, Refusal):
                    if event.reason in RETRYABLE:
                        self._encode_workers.avoid(encode)
                    raise event.as_error()
                await self._act(item, prefill, encode, self._react(item, event, budget))
        except ResumeError:
            raise
        except Exception as error:  # Dynamo's client raises builtin types for lost peers
            raise PeerUnreachable(f"encode worker {encode}: {error or 'no answer'}") from error
        if shake.state is not Shaking.DONE:
            raise TransferFailed(f"encode worker {encode} ended early: {shake.state.value}")

    def _react(self, item: _Item, event: Sized | Sent, budget: PromptBudget) -> list[Action]:
        if isinstance(event, Sent):
            return item.handshake.sent(event)
        item.sized = event
        budget.add(event.total_tokens)
        return item.handshake.sized(event)

    async def _act(self, item: _Item, prefill: int, encode: int, actions: list[Action]) -> None:
        """Carry out what the handshake wants, and what follows from that."""
        pending = list(actions)
        while pending:
            action = pending.pop(0)
            if isinstance(action, ForwardGrant):
                await self._tell_encode(encode, Forward(grant=action.grant))
                continue
            answer = await self._ask_for_blocks(item, prefill, _resume(item, action))
            if isinstance(answer, Granted):
                pending += item.handshake.granted(answer.grant)

    async def _ask_for_blocks(
        self, item: _Item, prefill: int, message: Reserve | Resume
    ) -> Granted | NoBlocks:
        waits = not isinstance(message, Resume) or message.wait
        timeout_s = self._patience_s if waits else CONTROL_TIMEOUT_S
        try:
            answer = await ask(
                self._peers.prefill_transfer, prefill, message, PREFILL_REPLY, timeout_s
            )
        except Refused as error:
            if error.reason in RETRYABLE:
                self._prefill_workers.avoid(prefill)
            raise
        if not isinstance(answer, Granted | NoBlocks):
            raise ProtocolError(f"prefill worker {prefill} answered {message.op} with {answer!r}")
        if isinstance(answer, Granted) and waits:
            item.waited_s += answer.waited_s
        return answer

    async def _tell_encode(self, encode: int, message: Forward | Close) -> None:
        client = self._peers.encode_transfer
        await ask(client, encode, message, ENCODE_CONTROL_REPLY, CONTROL_TIMEOUT_S)

    async def _give_up(self, item: _Item, prefill: int, encode: int) -> None:
        """First the writer stops, then the blocks go home (R6)."""
        try:
            await self._tell_encode(encode, Close(transfer_id=item.handshake.transfer_id))
            closed = True
        except ResumeError as error:
            logger.warning("encode worker %s did not confirm a close: %s", encode, error)
            closed = False
        await self._abort(item, prefill, closed)

    async def _abort(self, item: _Item, prefill: int, writer_closed: bool) -> None:
        abort = Abort(transfer_id=item.handshake.transfer_id, writer_closed=writer_closed)
        try:
            await ask(
                self._peers.prefill_transfer, prefill, abort, PREFILL_REPLY, CONTROL_TIMEOUT_S
            )
        except ResumeError as error:  # its own deadlines will do it
            logger.warning("prefill worker %s did not take an abort: %s", prefill, error)

    async def _abort_all(self, items: list[_Item], prefill: int) -> None:
        """After a failure: finished transfers wait for an engine that will not come."""
        done = [item for item in items if item.handshake.state is Shaking.DONE]
        await asyncio.gather(*(self._abort(item, prefill, writer_closed=True) for item in done))

    # Tokens.

    async def _relay(
        self, request: dict[str, Any], prefill: int, context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The engine's chunks. A stream without an end is an error, not an answer (R14)."""
        unfinished = set(range((request.get("sampling_options") or {}).get("n") or 1))
        try:
            async for chunk in self._chunks(request, prefill, context):
                if chunk.get("finish_reason"):
                    unfinished.discard(chunk.get("index") or 0)
                yield chunk
        except ResumeError:
            raise
        except Exception as error:
            if context.is_stopped():
                raise RequestStopped from error
            raise relayed(error) from error
        if unfinished and not context.is_stopped():
            raise TransferFailed(f"the answer of prefill worker {prefill} ended early")

    async def _aggregated(
        self, request: dict[str, Any], prefill: int, context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a prefill worker that decodes as well."""
        async with asyncio.timeout(CONTROL_TIMEOUT_S):
            stream = await self._peers.prefill.direct(
                request, prefill, annotated=False, context=context
            )
        probe = prober(self._peers.prefill_transfer, prefill, "prefill", self._settings)
        async for chunk in each_while(stream, self._settings.heartbeat_interval_s, probe):
            yield chunk


def _warm_up_request(image_token_id: int) -> dict[str, Any]:
    return {
        "token_ids": [1, image_token_id, 2],
        "multi_modal_data": {"image_url": [{"Url": WHITE_SQUARE}]},
        "stop_conditions": {"max_tokens": 1},
        "sampling_options": {"temperature": 0.0},
        "output_options": {},
    }


def media_of(request: dict[str, Any], image_token_id: int, max_items: int) -> list[Media]:
    """The request's media items in prompt order. Raises `Refused` where they do not fit.

    The prompt has exactly one placeholder per item: more come from a prompt that spells the
    placeholder's text, fewer from items that the chat template did not place.
    """
    by_kind = request.get("multi_modal_data") or {}
    unsupported = [kind for kind, items in by_kind.items() if items and kind != "image_url"]
    if unsupported:
        raise Refused(Reason.BAD_REQUEST, f"{unsupported[0]} items are not supported: send images")
    items = by_kind.get("image_url") or []
    placeholders = request["token_ids"].count(image_token_id)
    if placeholders != len(items):
        raise Refused(
            Reason.BAD_REQUEST,
            f"the prompt has {placeholders} image placeholder(s), the request {len(items)} "
            "image(s): send one image per placeholder and do not write placeholders as text",
        )
    if len(items) > max_items:
        raise Refused(
            Reason.BAD_REQUEST,
            f"{len(items)} images in one request, at most {max_items} are accepted "
            "(--mm-resume-max-media-items)",
        )
    return [_media(item) for item in items]


def _media(item: Any) -> Media:
    url = item.get("Url") if isinstance(item, dict) else None
    if not isinstance(url, str) or not url:
        raise Refused(Reason.BAD_REQUEST, "an image must be given as a URL")
    return Media(modality="image", url=url)


def without_media(request: dict[str, Any]) -> dict[str, Any]:
    """The request for the engine: no URLs, and no second copy of the conversation."""
    dropped = ("multi_modal_data", "multi_modal_uuids", "mm_routing_info")
    forwarded = {key: value for key, value in request.items() if key not in dropped}
    extra = {
        k: v
        for k, v in (request.get("extra_args") or {}).items()
        if k not in ("messages", "formatted_prompt", "mm_hashes", "mm_hashes_by_modality")
    }
    if "extra_args" in forwarded:
        forwarded["extra_args"] = extra
    return forwarded


def _resume(item: _Item, action: TryGrant | WaitForGrant) -> Resume:
    return Resume(
        transfer_id=item.handshake.transfer_id,
        sent_tokens=action.sent_tokens,
        total_tokens=item.handshake.total_tokens or 0,
        wait=isinstance(action, WaitForGrant),
    )


def _with_statistics(chunk: dict[str, Any], items: list[_Item]) -> dict[str, Any]:
    """The last chunk says how the embeddings travelled; clients ask for `engine_data` to see it."""
    if not items or not chunk.get("finish_reason"):
        return chunk
    statistics = {
        "image_tokens": sum(item.handshake.total_tokens or 0 for item in items),
        "rounds": sum(item.handshake.rounds for item in items),
        "bytes": sum(item.handshake.num_bytes for item in items),
        "wait_ms": round(1e3 * max(item.waited_s for item in items), 3),
    }
    engine_data = {**(chunk.get("engine_data") or {}), "mm_resume": statistics}
    return {**chunk, "engine_data": engine_data}
