# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Drives the receiving side: waits, copies and deadlines around core/receiver.py.

Everything here runs on one event loop. Each effect of the core is carried out by one line of
`_perform`; copies run in the thread pool and report back as events.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, assert_never

import torch

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.histogram import FEW, SECONDS, TOKENS, Histogram
from dynamo.sglang_mm_resume.core.messages import Grant, Reserve, parse_notice
from dynamo.sglang_mm_resume.core.receiver import (
    AskWriter,
    Completed,
    CopyOut,
    Effect,
    Ended,
    GrantMade,
    Receiver,
)
from dynamo.sglang_mm_resume.core.transitions import Receiving
from dynamo.sglang_mm_resume.transport.checksum import checksum_of, is_finite
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.tasks import Background, in_thread

logger = logging.getLogger(__name__)

#: Ended transfers whose cause is remembered, for the request that comes for their embedding.
REMEMBERED_ENDS: Final = 1024

#: States of a transfer whose embedding a request of this worker still needs.
ON_ITS_WAY: Final = frozenset(
    {
        Receiving.WAITING,
        Receiving.GRANTED,
        Receiving.RECEIVING,
        Receiving.RESUMING,
        Receiving.DRAINED,
        Receiving.COMPLETE,
    }
)

#: Asks a writer (instance id) to close a transfer. True: it confirmed, or is dead and drained.
AskWriterToClose = Callable[[int, str], Awaitable[bool]]


@dataclass(slots=True)
class _Waits:
    """What others of this worker wait for in one transfer."""

    granted: "asyncio.Future[Grant]"
    complete: "asyncio.Future[torch.Tensor]"
    request: tracing.Request | None = field(default_factory=tracing.current)
    rows: torch.Tensor | None = None
    making_rows: threading.Lock = field(default_factory=threading.Lock)
    assembling: tracing.Span | None = None  # from the first chunk on


class _End(NamedTuple):
    """Why a transfer ended, and whose it was."""

    error: ResumeError
    request: tracing.Request | None


@dataclass(slots=True)
class Totals:
    """Counters and histograms since the start; metrics.py says what each is."""

    transfers: int = 0
    embeddings_assembled: int = 0
    embeddings_resumed: int = 0
    embedding_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    embedding_rounds: Histogram = field(default_factory=lambda: Histogram(FEW))
    buffer_wait_seconds: dict[str, Histogram] = field(
        default_factory=lambda: {kind: Histogram(SECONDS) for kind in ("reserve", "resume")}
    )
    resumes: int = 0
    aborts: int = 0
    bytes_assembled: int = 0
    malformed_notices: int = 0
    stranger_notices: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Assembler:
    """Turns granted blocks into embeddings."""

    def __init__(
        self,
        receiver: Receiver,
        memory: PoolMemory,
        threads: Executor,
        ask_writer: AskWriterToClose,
        expect: Callable[[int], None],
        on_ready: Callable[[bool], None] = lambda ready: None,
        checksum: bool = False,
    ) -> None:
        """`on_ready` hears when too much is quarantined, and when that is over (R6).

        With `checksum`, rows that arrive must be finite, and those that were sent.
        """
        self.receiver = receiver
        self.totals = Totals()
        self._memory = memory
        self._threads = threads
        self._ask_writer = ask_writer
        self._expect = expect
        self._on_ready = on_ready
        self.checksum = checksum
        self._ready = True
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._waits: dict[str, _Waits] = {}
        self._background = Background()
        self._ended: OrderedDict[str, _End] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    # What the workers call.

    async def reserve(self, message: Reserve) -> Grant:
        """The default grant, as soon as its turn comes. Raises `Refused`."""
        effects = self.receiver.reserve(message, time.monotonic())
        waits = _Waits(self._loop.create_future(), self._loop.create_future())
        self._waits[message.transfer_id] = waits
        self.totals.transfers += 1
        self._expect(+1)
        self._perform(effects)
        return await self._grant(message.transfer_id, waits)

    def try_grant(self, transfer_id: str, total_tokens: int) -> Grant | None:
        """More blocks at once, or `None`. Raises what ended it, `Refused` or `ProtocolError`."""
        self._require(transfer_id)
        grant = self.receiver.try_grant(transfer_id, total_tokens, time.monotonic())
        self._arm()
        return grant

    async def resume(self, transfer_id: str, sent_tokens: int, total_tokens: int) -> Grant:
        """More blocks, once those of the transfer are home and its turn comes (R4)."""
        waits = self._require(transfer_id)
        now = time.monotonic()
        effects = self.receiver.resume(transfer_id, sent_tokens, total_tokens, now)
        # Only now: a repeated resume is refused above and must not orphan the one that waits.
        waits.granted = self._loop.create_future()
        self.totals.resumes += 1
        self._expect(0)
        self._perform(effects)
        return await self._grant(transfer_id, waits)

    async def take(self, transfer_id: str) -> torch.Tensor:
        """The complete embedding, `(total_tokens, width)`, on the host. `drop` it afterwards.

        Raises what ended the transfer. Never waits for ever: the receiver has deadlines.
        """
        complete = self._require(transfer_id).complete
        if not complete.done():
            self._expect(0)
        rows = await asyncio.shield(complete)
        self.receiver.take(transfer_id)
        self._changed.set()
        return rows

    def abort(self, transfer_id: str, writer_closed: bool) -> None:
        """The processor gives a transfer up; unknown ones are fine."""
        self.totals.aborts += transfer_id in self._waits
        self.drop(transfer_id, writer_closed)

    def drop(self, transfer_id: str, writer_closed: bool = False, why: str = "") -> None:
        """End a transfer in whatever state it is; unknown ones are fine."""
        error = TransferFailed(f"transfer {transfer_id} was given up{': ' if why else ''}{why}")
        now = time.monotonic()
        self._perform(self.receiver.abort(transfer_id, writer_closed, error, now))

    def on_notice(self, peer: str, payload: bytes) -> None:
        """A notification from NIXL: data of a chunk is in place, or something odd."""
        try:
            notice = parse_notice(payload)
        except ProtocolError as error:
            self.totals.malformed_notices += 1
            logger.warning("notice from %s ignored: %s", peer, error)
            return
        try:
            self._perform(self.receiver.landed(notice, time.monotonic()))
        except ResumeError as error:
            logger.warning("notice of %s ignored: %s", notice.transfer_id, error)

    async def close(self) -> None:
        """Give up everything that is live and wait for the copies under way."""
        for transfer_id in list(self.receiver.live):
            self.drop(transfer_id, why="this worker shuts down")
        if self._timer is not None:
            self._timer.cancel()
        await self._background.cancel()

    @property
    def num_tasks(self) -> int:
        return len(self._background)

    async def drained(self) -> None:
        """Return once no embedding is on its way any more: each is in the engine, or given up."""
        while any(state in ON_ITS_WAY for state in self.receiver.live.values()):
            self._changed.clear()
            await self._changed.wait()

    # Effects.

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case GrantMade():
                    self._hand_over(effect)
                case CopyOut():
                    self._copy_out(effect)
                case Completed():
                    self._complete(effect)
                case Ended(transfer_id, error):
                    self._end(transfer_id, error)
                case AskWriter(transfer_id, writer):
                    ended = self._ended.get(transfer_id)
                    with tracing.within(ended.request if ended else None):
                        self._background.start(self._settle(transfer_id, writer))
                case _:
                    assert_never(effect)
        self._report_readiness()
        self._arm()
        self._changed.set()

    def _report_readiness(self) -> None:
        ready = self.receiver.is_ready
        if ready != self._ready:
            self._ready = ready
            quarantined = self.receiver.pool.stats().quarantined
            logger.warning(
                "%s: %d blocks quarantined", "ready" if ready else "unready", quarantined
            )
            self._on_ready(ready)

    def _hand_over(self, made: GrantMade) -> None:
        kind = "resume" if made.grant.first_token else "reserve"
        self.totals.buffer_wait_seconds[kind].observe(made.waited_s)
        waits = self._waits.get(made.transfer_id)
        if waits is None or waits.granted.cancelled():
            self._asker_gone(made.transfer_id)
        else:
            waits.granted.set_result(made.grant)

    def _copy_out(self, effect: CopyOut) -> None:
        """At once: a task that starts it would come two turns of the loop later."""
        waits = self._waits.get(effect.transfer_id)
        if waits is None:
            return
        with tracing.within(waits.request):
            if waits.assembling is None:
                waits.assembling = tracing.span("assemble", transfer_id=effect.transfer_id)
            copy = in_thread(self._threads, self._gather, waits, effect)
            self._background.start(self._copied(effect, copy))

    async def _copied(self, effect: CopyOut, copy: "asyncio.Future[None]") -> None:
        try:
            await copy
        except Refused as error:
            now = time.monotonic()
            self._perform(self.receiver.abort(effect.transfer_id, False, error, now))
            return
        except Exception:  # out of memory, or a bug: the request must hear of it now
            logger.exception("copying a chunk of %s failed", effect.transfer_id)
            self.drop(effect.transfer_id, why="its embedding could not be assembled")
            return
        self.totals.bytes_assembled += effect.chunk.num_tokens * self._memory.layout.token_bytes
        self._perform(self.receiver.copied(effect.transfer_id, effect.chunk, time.monotonic()))

    def _gather(self, waits: _Waits, effect: CopyOut) -> None:
        """In a thread: the first chunk makes the embedding (pinning takes milliseconds)."""
        with waits.making_rows:
            if waits.rows is None:
                waits.rows = self._memory.empty_rows(effect.total_tokens)
        chunk = effect.chunk
        rows = waits.rows[chunk.first_token : chunk.first_token + chunk.num_tokens]
        self._memory.gather(chunk.blocks, rows)
        if self.checksum:
            _check(rows, effect)

    def _complete(self, done: Completed) -> None:
        waits = self._waits[done.transfer_id]
        if waits.rows is None:
            return
        self._expect(-1)
        self.totals.embeddings_assembled += 1
        self.totals.embeddings_resumed += done.rounds > 1
        self.totals.embedding_tokens.observe(done.total_tokens)
        self.totals.embedding_rounds.observe(done.rounds)
        if waits.assembling is not None:
            waits.assembling.end(tokens=done.total_tokens, rounds=done.rounds)
        waits.complete.set_result(waits.rows)

    def _end(self, transfer_id: str, error: ResumeError) -> None:
        waits = self._waits.pop(transfer_id)
        if waits.complete.done():
            return
        self._expect(-1)
        self._ended[transfer_id] = _End(error, waits.request)
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        if waits.assembling is not None:
            waits.assembling.abandon(error)
        self.totals.reasons[error.reason if isinstance(error, Refused) else "failed"] += 1
        for future in (waits.granted, waits.complete):
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark as seen: often nobody waits any more
        with tracing.within(waits.request):
            logger.info("transfer %s ended: %s", transfer_id, error)

    async def _settle(self, transfer_id: str, writer: int) -> None:
        if await self._ask_writer(writer, transfer_id):
            self._perform(self.receiver.writer_settled(transfer_id, time.monotonic()))

    # Helpers.

    def _require(self, transfer_id: str) -> _Waits:
        waits = self._waits.get(transfer_id)
        if waits is not None:
            return waits
        ended = self._ended.get(transfer_id)
        if ended is not None:
            raise ended.error.with_traceback(None)
        raise Refused(Reason.UNKNOWN_TRANSFER, f"no live transfer {transfer_id}")

    async def _grant(self, transfer_id: str, waits: _Waits) -> Grant:
        try:
            with tracing.span("wait_for_blocks", transfer_id=transfer_id):
                grant = await waits.granted
        except asyncio.CancelledError:
            self._asker_gone(transfer_id)
            raise
        self._require(transfer_id)  # it may have ended since, in this same turn of the loop
        self.receiver.answered(transfer_id)
        return grant

    def _asker_gone(self, transfer_id: str) -> None:
        error = TransferFailed(f"transfer {transfer_id} was given up: its request was cancelled")
        self._perform(self.receiver.asker_gone(transfer_id, error, time.monotonic()))

    def _arm(self) -> None:
        deadline = self.receiver.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and deadline != float("inf"):
            delay = max(0.0, deadline - time.monotonic())
            with tracing.within(None):  # it may end the transfer of any request
                self._timer = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        self._perform(self.receiver.tick(time.monotonic()))


def _check(rows: torch.Tensor, effect: CopyOut) -> None:
    """Raises `Refused` unless `rows`, just copied, are finite and what the writer has sent."""
    if effect.checksum is not None and checksum_of(rows) != effect.checksum:
        fault = "are not those that were sent"
    elif not is_finite(rows):
        fault = "are not finite"
    else:
        return
    where = f"from token {effect.chunk.first_token} on"
    raise Refused(Reason.CORRUPT, f"rows of {effect.transfer_id} {where} {fault}")
