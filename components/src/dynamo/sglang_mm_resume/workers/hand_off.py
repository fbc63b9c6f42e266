# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Moves the media items of requests: the processor's side, one handshake per item, in parallel.

An item whose encode worker cannot do it is tried once more on another, as a transfer of its own
(R13). What fails on the prefill worker's side fails for all items: the request as a whole may then
be tried on another prefill worker (workers/processor.py).
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from dynamo.sglang_mm_resume import tracing
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
from dynamo.sglang_mm_resume.core.histogram import SECONDS, Histogram
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE_CONTROL_REPLY,
    ENCODE_EVENT,
    PREFILL_REPLY,
    Abort,
    Close,
    Encode,
    EncodeEvent,
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
    require_known,
    version_to_repeat_in,
)
from dynamo.sglang_mm_resume.core.transitions import Shaking
from dynamo.sglang_mm_resume.transport.rpc import (
    Client,
    PeerUnreachable,
    ProbeTotals,
    ask,
    each_within,
)
from dynamo.sglang_mm_resume.transport.tasks import Background
from dynamo.sglang_mm_resume.workers.affinity import Affinity
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding, NoneAlive
from dynamo.sglang_mm_resume.workers.calls import CONTROL_TIMEOUT_S, Workers
from dynamo.sglang_mm_resume.workers.sizes import KnownSizes

logger = logging.getLogger(__name__)

#: Extra seconds over a peer's own deadline, so that the peer's own message is what we report.
SLACK_S: Final = 2.0
#: An item is encoded by one worker, and by another if that one fails.
MAX_ATTEMPTS: Final = 2
#: What another encode worker might not refuse. INTERNAL: this one may be out of memory. LAYOUT: it
#: does not fit the prefill worker, as while a graph is being updated.
ENCODE_RETRYABLE: Final = RETRYABLE | {Reason.INTERNAL, Reason.LAYOUT}


#: Of a request with media, by which its time is told apart; metrics.py says what each is.
STAGES: Final = ("reserve", "load", "encode", "first_token")

#: The prefill worker no longer knows the transfer, and is well.
GIVEN_UP: Final = frozenset({Reason.UNKNOWN_TRANSFER, Reason.FAILED})


class NoEncodeWorker(TransferFailed):
    """No encode worker is alive, or those that were asked broke off."""


class PrefillFailed(ResumeError):
    """The prefill worker cannot serve this request now; another one might.

    `cause` is the error for the client if there is no other.
    """

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause

    @property
    def is_no_attempt(self) -> bool:
        """A worker that shuts down has refused: nothing was tried."""
        return _is_draining(self.cause)


class _EncodeFailed(ResumeError):
    """The encode worker cannot do this item now; another one might."""

    def __init__(self, worker: int, cause: ResumeError) -> None:
        super().__init__(str(cause))
        self.worker = worker
        self.cause = cause

    @property
    def is_no_attempt(self) -> bool:
        """The worker shuts down: nothing was tried."""
        return _is_draining(self.cause)

    def for_client(self) -> ResumeError:
        """A worker that refuses is alive: that is another matter than one that is gone."""
        if isinstance(self.cause, Refused):
            return self.cause
        return NoEncodeWorker(f"encode worker {self.worker}: {self.cause}")


@dataclass(frozen=True, slots=True)
class Peers:
    """Clients of the endpoints that the processor calls."""

    prefill: Client  # generate
    prefill_transfer: Client
    encode: Client  # generate
    encode_transfer: Client


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request's items go, and what they share."""

    prefill: int
    budget: PromptBudget
    priority: int


@dataclass(slots=True)
class Item:
    """One media item of a request. A second attempt has a handshake of its own (R13)."""

    name: str  # as of `names_of`
    media: Media
    encode: int | None = None  # the encode worker to use, if it must be a certain one
    handshake: Handshake = field(default_factory=lambda: Handshake(uuid.uuid4().hex))
    sized: Sized | None = None
    waited_s: float = 0.0
    acting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def begin_anew(self, budget: PromptBudget) -> None:
        """As a transfer of its own; `budget` forgets what the first attempt has added to it."""
        self.handshake = Handshake(uuid.uuid4().hex)
        if self.sized is not None:
            budget.remove(self.sized.total_tokens)
            self.sized = None

    @property
    def received(self) -> Received:
        if self.sized is None:
            raise TransferFailed("the encode worker never named the embedding's size")
        return Received.of(self.handshake.transfer_id, self.media.modality, self.sized)


@dataclass(slots=True)
class HandOffTotals:
    """Counters and histograms since the start; metrics.py says what each is."""

    items: int = 0
    rounds: int = 0
    bytes: int = 0
    encode_retries: int = 0
    stage_seconds: dict[str, Histogram] = field(
        default_factory=lambda: {stage: Histogram(SECONDS) for stage in STAGES}
    )


class HandOff:
    """Moves items from encode workers to prefill workers."""

    def __init__(
        self,
        settings: Settings,
        peers: Peers,
        prefill_workers: LeastOutstanding,
        sizes: KnownSizes,
    ) -> None:
        self.totals = HandOffTotals()
        self.background = Background()
        self._settings = settings
        self._peers = peers
        self._prefill_workers = prefill_workers
        self._patience_s = settings.bootstrap_timeout_s + SLACK_S
        self._affinity = Affinity()
        self._sizes = sizes
        self._encode = Workers("encode", peers.encode, peers.encode_transfer, settings)
        self._encode_workers = LeastOutstanding(
            peers.encode,
            "encode",
            settings.max_encodes,
            settings.bootstrap_timeout_s,
            self._encode.answers_ping,
        )

    def require_room(self) -> None:
        """Raises `Refused` at once if the encode workers have more than enough to do (R7)."""
        self._encode_workers.require_room()

    @property
    def num_waiting(self) -> int:
        """Items that wait for an encode worker with room."""
        return self._encode_workers.num_waiting

    @property
    def probes(self) -> ProbeTotals:
        """Of encode workers."""
        return self._encode.probes

    async def move(self, items: list[Item], destination: Destination) -> None:
        """All items in parallel; the first error gives the others up.

        Raises `NoEncodeWorker`, `PrefillFailed`, or what the item itself is refused for.
        """
        tasks = [asyncio.ensure_future(self._transfer(item, destination)) for item in items]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def finish(self) -> None:
        """Wait until everything that was given up is given back."""
        await self._encode_workers.close()
        await self.background.finish()

    def give_back(self, items: list[Item], prefill: int) -> None:
        """After a failure: finished transfers wait for an engine that will not come."""
        for item in items:
            if item.handshake.state is Shaking.DONE:
                transfer_id = item.handshake.transfer_id
                self.background.start(self._abort(transfer_id, prefill, writer_closed=True))

    async def _transfer(self, item: Item, destination: Destination) -> None:
        """One item from its default grant to its last token."""
        tried: set[int] = set()
        while True:
            try:
                favourite = self._favourite(item.media)
                async with self._encode_workers.borrow(item.encode, tried, favourite) as encode:
                    self._affinity.remember(item.media, encode)
                    await self._attempt(item, destination, encode)
                break
            except NoneAlive as error:
                raise NoEncodeWorker(str(error)) from error
            except _EncodeFailed as error:
                if not error.is_no_attempt:
                    tried.add(error.worker)
                final = item.encode is not None or len(tried) == MAX_ATTEMPTS
                if final or not self._encode_workers.has_other(tried):
                    raise error.for_client() from error
                if not error.is_no_attempt:
                    logger.warning("%s goes to another encode worker: %s", item.name, error)
                    self.totals.encode_retries += 1
                item.begin_anew(destination.budget)
        self.totals.items += 1
        self.totals.rounds += item.handshake.rounds
        self.totals.bytes += item.handshake.num_bytes

    def _favourite(self, media: Media) -> int | None:
        return self._affinity.worker_of(media) if self._settings.embedding_cache else None

    async def _attempt(self, item: Item, destination: Destination, encode: int) -> None:
        """By one encode worker. Whatever ends it early, nothing of it stays (R16)."""
        transfer_id = item.handshake.transfer_id
        try:
            with tracing.branch("item", transfer_id=transfer_id, item=item.name):
                await self._shake_hands(item, destination, encode)
        except BaseException as error:
            self.background.start(self._give_up(transfer_id, destination.prefill, encode))
            if isinstance(error, Refused) and error.reason is Reason.BAD_REQUEST:
                raise Refused(error.reason, f"{item.name}: {error.message}") from error
            raise

    async def _shake_hands(self, item: Item, destination: Destination, encode: int) -> None:
        shake = item.handshake
        reserve = Reserve(
            transfer_id=shake.transfer_id,
            writer_instance_id=encode,
            priority=destination.priority,
        )
        granted = await self._ask_for_blocks(item, destination.prefill, reserve)
        if not isinstance(granted, Granted):
            raise ProtocolError(
                f"prefill worker {destination.prefill} answered a reserve with {granted!r}"
            )
        require_known(item.media, granted.v, f"prefill worker {destination.prefill}")
        shake.granted(granted.grant)
        destination.budget.max_tokens = granted.max_prompt_tokens
        message = Encode(
            transfer_id=shake.transfer_id,
            media=item.media,
            grant=granted.grant,
            receiver=granted.receiver,
            prompt_tokens=destination.budget.prompt_tokens,
            max_prompt_tokens=granted.max_prompt_tokens,
        )
        stage = tracing.Span(self.totals.stage_seconds["load"])
        async with _together() as tasks, aclosing(self._events(message, encode)) as events:
            async for event in events:
                if isinstance(event, Sized):
                    stage.end()
                    stage = tracing.Span(self.totals.stage_seconds["encode"])
                actions = self._react(item, event, destination.budget)
                if shake.state is Shaking.DONE:
                    stage.end()
                if actions:  # not here: what waits for blocks must hear of the writer's end
                    tasks.create_task(self._act(item, destination.prefill, encode, actions))
            if shake.state is not Shaking.DONE:
                error = TransferFailed(f"ended early: {shake.state.value}")
                raise _EncodeFailed(encode, error)

    async def _events(self, message: Encode, encode: int) -> AsyncGenerator[Sized | Sent, None]:
        """What the encode worker reports. Raises `_EncodeFailed` if another might do better."""
        try:
            async with aclosing(self._answers(message, encode, PROTOCOL_VERSION)) as events:
                async for event in events:
                    if not isinstance(event, Refusal):
                        yield event
                    elif event.reason in ENCODE_RETRYABLE:
                        _pass_over(self._encode_workers, encode, event.reason)
                        raise _EncodeFailed(encode, event.as_error())
                    else:
                        raise event.as_error()
        except PeerUnreachable as error:
            raise self._lost(encode, error) from error
        except ResumeError:
            raise
        except Exception as error:  # Dynamo's client raises builtin types for lost peers
            raise self._lost(encode, PeerUnreachable(str(error) or "no answer")) from error

    async def _answers(
        self, message: Encode, encode: int, version: int
    ) -> AsyncGenerator[EncodeEvent, None]:
        """To what is said in `version`, or again in that of the encode worker."""
        stream = await self._encode.start(encode, dump(message, version))
        async for payload in each_within(self._patience_s, stream):
            event = parse(ENCODE_EVENT, payload)
            theirs = version_to_repeat_in(event)
            if theirs is None or theirs == version:
                yield event
                continue
            try:
                require_known(message.media, theirs, f"encode worker {encode}")
            except Refused as error:
                raise _EncodeFailed(encode, error) from error
            async with aclosing(self._answers(message, encode, theirs)) as events:
                async for event in events:
                    yield event
            return

    def _lost(self, encode: int, error: PeerUnreachable) -> _EncodeFailed:
        self._encode_workers.suspect(encode)
        return _EncodeFailed(encode, error)

    def _react(self, item: Item, event: Sized | Sent, budget: PromptBudget) -> list[Action]:
        if isinstance(event, Sent):
            return item.handshake.sent(event)
        item.sized = event
        self._sizes.remember(item.media, event)
        budget.add(event.total_tokens)
        return item.handshake.sized(event)

    async def _act(self, item: Item, prefill: int, encode: int, actions: list[Action]) -> None:
        """Carry out what the handshake wants, and what follows from that: in order, as grants
        must reach the writer in theirs.
        """
        pending = list(actions)
        async with item.acting:
            while pending:
                action = pending.pop(0)
                if isinstance(action, ForwardGrant):
                    await self._forward(encode, Forward(grant=action.grant))
                    continue
                answer = await self._resume(item, prefill, encode, action)
                if isinstance(answer, Granted):
                    pending += item.handshake.granted(answer.grant)
                else:
                    pending += item.handshake.no_blocks()

    async def _resume(
        self, item: Item, prefill: int, encode: int, action: TryGrant | WaitForGrant
    ) -> Granted | NoBlocks:
        try:
            return await self._ask_for_blocks(item, prefill, _resume_message(item, action))
        except PrefillFailed as error:
            gone = isinstance(error.cause, Refused) and error.cause.reason in GIVEN_UP
            if not gone:
                raise
            # The prefill worker took the encode worker for dead, and gave its transfers up.
            cause = TransferFailed(f"the transfer was given up: {error}")
            raise _EncodeFailed(encode, cause) from error

    async def _ask_for_blocks(
        self, item: Item, prefill: int, message: Reserve | Resume
    ) -> Granted | NoBlocks:
        waits = not isinstance(message, Resume) or message.wait
        timeout_s = self._patience_s if waits else CONTROL_TIMEOUT_S
        try:
            with tracing.span(message.op, self.totals.stage_seconds.get(message.op), waits=waits):
                answer = await ask(
                    self._peers.prefill_transfer, prefill, message, PREFILL_REPLY, timeout_s
                )
        except PeerUnreachable as error:
            self._prefill_workers.suspect(prefill)
            raise PrefillFailed(error) from error
        except Refused as error:
            if error.reason not in RETRYABLE:
                raise
            _pass_over(self._prefill_workers, prefill, error.reason)
            raise PrefillFailed(error) from error
        if not isinstance(answer, Granted | NoBlocks):
            raise ProtocolError(f"prefill worker {prefill} answered {message.op} with {answer!r}")
        if isinstance(answer, Granted) and waits:
            item.waited_s += answer.waited_s
        return answer

    async def _forward(self, encode: int, message: Forward) -> None:
        try:
            await self._tell_encode(encode, message, CONTROL_TIMEOUT_S)
        except PeerUnreachable as error:
            raise self._lost(encode, error) from error
        except Refused as error:
            if error.reason not in ENCODE_RETRYABLE:
                raise
            raise _EncodeFailed(encode, error) from error

    async def _tell_encode(self, encode: int, message: Forward | Close, timeout_s: float) -> None:
        client = self._peers.encode_transfer
        await ask(client, encode, message, ENCODE_CONTROL_REPLY, timeout_s)

    async def _give_up(self, transfer_id: str, prefill: int, encode: int) -> None:
        """First the writer stops, then the blocks go home (R6)."""
        try:
            patience_s = self._settings.heartbeat_interval_s
            await self._tell_encode(encode, Close(transfer_id=transfer_id), patience_s)
            closed = True
        except ResumeError as error:
            logger.warning("encode worker %s did not confirm a close: %s", encode, error)
            closed = False
        await self._abort(transfer_id, prefill, closed)

    async def _abort(self, transfer_id: str, prefill: int, writer_closed: bool) -> None:
        abort = Abort(transfer_id=transfer_id, writer_closed=writer_closed)
        try:
            await ask(
                self._peers.prefill_transfer, prefill, abort, PREFILL_REPLY, CONTROL_TIMEOUT_S
            )
        except ResumeError as error:  # its own deadlines will do it
            logger.warning("prefill worker %s did not take an abort: %s", prefill, error)


def _is_draining(error: Exception) -> bool:
    return isinstance(error, Refused) and error.reason is Reason.DRAINING


def _pass_over(workers: LeastOutstanding, worker: int, reason: Reason) -> None:
    """It refused, for a moment or for good."""
    if reason is Reason.DRAINING:
        workers.drains(worker)
    else:
        workers.avoid(worker)


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that end with the block; the first error, of one of them or of the block, ends all."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _resume_message(item: Item, action: TryGrant | WaitForGrant) -> Resume:
    return Resume(
        transfer_id=item.handshake.transfer_id,
        sent_tokens=action.sent_tokens,
        total_tokens=item.handshake.total_tokens or 0,
        wait=isinstance(action, WaitForGrant),
    )
