# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The prefill worker's side of all transfers: who gets which blocks, and when they come home.

Every method takes what happened, and the time where it matters, and returns the effects that the
driver (transport/assembler.py) is to carry out. A block goes back to the pool at exactly three
places: `copied` (its rows are out), `_leave` (no writer can touch it) and `writer_settled` (R6).
"""

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.layout import blocks_for
from dynamo.sglang_mm_resume.core.lengths import RecentLengths
from dynamo.sglang_mm_resume.core.messages import Chunk, ChunkNotice, Grant, Reserve, chunks_of
from dynamo.sglang_mm_resume.core.progress import Progress
from dynamo.sglang_mm_resume.core.queue import GrantQueue
from dynamo.sglang_mm_resume.core.transitions import RECEIVING, Receiving, ReceivingEvent, step

#: Closed transfers that are remembered, so that a late notice is known as late.
TOMBSTONES = 4096

#: A complete embedding waits this many time-outs for its request's other items.
CLAIM_PATIENCE = 10

#: States in which a transfer has blocks, or waits for some.
USING_BLOCKS = frozenset(
    {
        Receiving.WAITING,
        Receiving.GRANTED,
        Receiving.RECEIVING,
        Receiving.RESUMING,
        Receiving.DRAINED,
    }
)

#: States in which somebody waits for the answer to a reserve or a resume.
AWAITED = frozenset({Receiving.WAITING, Receiving.GRANTED, Receiving.RESUMING})

#: A default grant that follows the lengths leaves room for so many others.
ADAPTED_SHARE = 8


class Oddity(StrEnum):
    """Notices that change nothing (R8); the value labels a counter."""

    UNKNOWN = "unknown_transfer"
    LATE = "late"  # the transfer is closed or given up
    STALE = "stale_generation"
    DUPLICATE = "duplicate_chunk"
    MISFIT = "misfit"  # not a chunk of its grant


@dataclass(frozen=True, slots=True)
class GrantMade:
    """A reserve or resume that waited has its blocks, after `waited_s` seconds in the queue."""

    transfer_id: str
    grant: Grant
    waited_s: float


@dataclass(frozen=True, slots=True)
class CopyOut:
    """A chunk's bytes are in its blocks: copy its rows to their place in the embedding."""

    transfer_id: str
    chunk: Chunk
    total_tokens: int
    checksum: int | None = None  # what the writer says of the rows


@dataclass(frozen=True, slots=True)
class Completed:
    """Every token of the embedding is assembled, from as many grants as `rounds`."""

    transfer_id: str
    total_tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The transfer is over without its embedding; everybody who waits for it gets `error`."""

    transfer_id: str
    error: ResumeError


@dataclass(frozen=True, slots=True)
class AskWriter:
    """Blocks are quarantined: ask the writer to close, again and again until it is settled."""

    transfer_id: str
    writer: int


Effect = GrantMade | CopyOut | Completed | Ended | AskWriter


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """Bounds of a receiver (R7). Seconds, tokens, blocks.

    `adaptive`: default grants follow the lengths of recent embeddings.
    """

    wait_timeout_s: float
    max_waiting: int
    max_assembled_tokens: int
    chunk_blocks: int
    resumable: bool
    settle_interval_s: float
    max_quarantined_blocks: int
    adaptive: bool = False


@dataclass(slots=True)
class _OpenGrant:
    grant: Grant
    lease: Lease
    landed: set[int] = field(default_factory=set)
    copied: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Transfer:
    reserve: Reserve
    state: Receiving
    deadline: float
    begun_at: float
    open: dict[int, _OpenGrant] = field(default_factory=dict)
    total_tokens: int | None = None
    granted_tokens: int = 0
    copied_tokens: int = 0
    rounds: int = 0
    queued_at: float = 0.0
    waited_s: float = 0.0

    @property
    def transfer_id(self) -> str:
        return self.reserve.transfer_id


class Receiver:
    """All transfers into one pool."""

    def __init__(self, pool: BlockPool, limits: ReceiverLimits) -> None:
        self.pool = pool
        self.limits = limits
        self.oddities: Counter[Oddity] = Counter()
        self.lengths = RecentLengths()
        self.peak_transfers = 0  # that had blocks, or waited for some, at the same time
        self._queue = GrantQueue(pool, divisible=limits.resumable)
        self._live: dict[str, _Transfer] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._assembled_tokens = 0

    # What others ask for.

    def reserve(self, message: Reserve, now: float) -> list[Effect]:
        """Queue the default grant; `GrantMade` follows at once or later, and then `answered` or
        `asker_gone`. Raises `Refused`.
        """
        transfer_id = message.transfer_id
        if transfer_id in self._live or transfer_id in self._closed:
            raise Refused(Reason.DUPLICATE, f"transfer {transfer_id} was used before (R13)")
        if not self.is_ready:
            raise Refused(
                Reason.OVERLOADED,
                f"{self.pool.stats().quarantined} of {self.pool.num_blocks} blocks are "
                "quarantined (--mm-resume-max-quarantined-fraction): try again later",
            )
        if len(self._queue) >= self.limits.max_waiting:
            raise Refused(
                Reason.OVERLOADED,
                f"{len(self._queue)} transfers wait for blocks already "
                "(--mm-resume-max-waiting-transfers): try again later",
            )
        deadline = now + self.limits.wait_timeout_s
        self._live[transfer_id] = _Transfer(
            message, Receiving.WAITING, deadline, now, queued_at=now
        )
        self._queue.push(transfer_id, self.pool.default_blocks, message.priority)
        using = sum(transfer.state in USING_BLOCKS for transfer in self._live.values())
        self.peak_transfers = max(self.peak_transfers, using)
        return self._pump(now)

    def try_grant(self, transfer_id: str, total_tokens: int, now: float) -> Grant | None:
        """Blocks for what no grant covers yet, at once or not at all. Raises `Refused`."""
        transfer = self._require(transfer_id)
        self._learn_length(transfer, total_tokens)
        if transfer.state not in (Receiving.RECEIVING, Receiving.DRAINED):
            raise ProtocolError(f"try-grant for {transfer_id} while {transfer.state.value}")
        wanted = self._blocks_wanted(transfer)
        lease = self._queue.try_now(transfer_id, wanted) if wanted else None
        return None if lease is None else self._give(transfer, lease, now)

    def resume(
        self, transfer_id: str, sent_tokens: int, total_tokens: int, now: float
    ) -> list[Effect]:
        """Queue for what remains, once every block of the transfer is home (R4)."""
        transfer = self._require(transfer_id)
        self._learn_length(transfer, total_tokens)
        if sent_tokens != transfer.granted_tokens or not self._blocks_wanted(transfer):
            raise ProtocolError(
                f"resume of {transfer_id} after {sent_tokens} tokens, but grants cover "
                f"{transfer.granted_tokens} of {total_tokens}"
            )
        self._move(transfer, ReceivingEvent.RESUME)
        transfer.deadline = now + self.limits.wait_timeout_s
        return self._queue_if_home(transfer, now)

    def answered(self, transfer_id: str) -> None:
        """Whoever waited for `GrantMade` has its grant: from here on a writer may use it."""
        self._move(self._require(transfer_id), ReceivingEvent.ANSWER)

    def asker_gone(self, transfer_id: str, error: ResumeError, now: float) -> list[Effect]:
        """Whoever waited for a reserve or a resume is gone: nobody would pass a grant on.

        A grant that it has not heard of is known to no writer, and free at once. A transfer that
        resumes has others, which its writer may be filling: those are quarantined (R6).
        """
        transfer = self._live.get(transfer_id)
        if transfer is None or transfer.state not in AWAITED:
            return []  # it ended at the same time
        return self._leave(transfer, ReceivingEvent.ASKER_GONE, error, now)

    def take(self, transfer_id: str) -> None:
        """A request hands the complete embedding to the engine; `abort` ends its use."""
        transfer = self._require(transfer_id)
        self._move(transfer, ReceivingEvent.TAKE)
        transfer.deadline = math.inf  # from here on the request's own end is what ends it

    def abort(
        self, transfer_id: str, writer_closed: bool, error: ResumeError, now: float
    ) -> list[Effect]:
        """Give a transfer up. An unknown one is remembered: its reserve may come later."""
        transfer = self._live.get(transfer_id)
        if transfer is None:
            self._remember(transfer_id)
            return []
        if transfer.state is Receiving.QUARANTINED:
            return self.writer_settled(transfer_id, now) if writer_closed else []
        return self._end(transfer, writer_closed, error, now)

    # What the writer did.

    def landed(self, notice: ChunkNotice, now: float) -> list[Effect]:
        """A chunk's bytes are in place. Whatever does not match changes nothing (R8, R9)."""
        transfer = self._live.get(notice.transfer_id)
        if transfer is None:
            known = notice.transfer_id in self._closed
            return self._odd(Oddity.LATE if known else Oddity.UNKNOWN)
        if transfer.state is Receiving.QUARANTINED:
            return self._odd(Oddity.LATE)
        granted = transfer.open.get(notice.generation)
        if granted is None or transfer.state is Receiving.GRANTED:  # no writer knows of it yet
            return self._odd(Oddity.STALE)
        chunk = _matching_chunk(granted.grant, notice, transfer.total_tokens)
        if chunk is None:
            return self._odd(Oddity.MISFIT)
        if chunk.index in granted.landed:
            return self._odd(Oddity.DUPLICATE)
        try:
            self._learn_length(transfer, notice.total_tokens)
        except Refused as error:  # more than this worker may assemble
            return self._end(transfer, False, error, now)
        granted.landed.add(chunk.index)
        transfer.deadline = now + self.limits.wait_timeout_s
        return [CopyOut(transfer.transfer_id, chunk, notice.total_tokens, notice.checksum)]

    def copied(self, transfer_id: str, chunk: Chunk, now: float) -> list[Effect]:
        """A chunk's rows are out of their blocks; give the grant back after its last chunk."""
        transfer = self._live.get(transfer_id)
        granted = transfer.open.get(chunk.generation) if transfer else None
        if transfer is None or granted is None or transfer.total_tokens is None:
            return []  # given up meanwhile
        granted.copied.add(chunk.index)
        transfer.copied_tokens += chunk.num_tokens
        if len(granted.copied) < len(chunks_of(granted.grant, transfer.total_tokens)):
            return []
        del transfer.open[chunk.generation]
        self.pool.release(granted.lease)
        return [*self._queue_if_home(transfer, now), *self._pump(now)]

    def writer_settled(self, transfer_id: str, now: float) -> list[Effect]:
        """The writer of a quarantined transfer is closed, or dead and drained (R6)."""
        transfer = self._live.get(transfer_id)
        if transfer is None or transfer.state is not Receiving.QUARANTINED:
            return []
        self._move(transfer, ReceivingEvent.SETTLE)
        for granted in transfer.open.values():
            self.pool.settle(granted.lease)
        self._bury(transfer)
        return self._pump(now)

    # Time.

    def next_deadline(self) -> float | None:
        """When `tick` is due next; `None` while there is no transfer."""
        return min((t.deadline for t in self._live.values()), default=None)

    def tick(self, now: float) -> list[Effect]:
        """Give up what waited too long; ask again about quarantined blocks."""
        effects: list[Effect] = []
        for transfer in [t for t in self._live.values() if t.deadline <= now]:
            if transfer.deadline > now:
                continue  # one that ended just before has made room for it: it was granted
            if transfer.state is Receiving.QUARANTINED:
                transfer.deadline = now + self.limits.settle_interval_s
                effects.append(AskWriter(transfer.transfer_id, transfer.reserve.writer_instance_id))
            else:
                effects += self._end(transfer, False, self._timeout(transfer), now)
        return effects

    # What operators and tests look at.

    @property
    def live(self) -> dict[str, Receiving]:
        """Every transfer that is not closed, by id."""
        return {transfer_id: t.state for transfer_id, t in self._live.items()}

    def progress(self, now: float) -> dict[str, Progress]:
        """How far each of them is."""
        return {
            transfer_id: Progress(t.rounds, t.copied_tokens, t.total_tokens, now - t.begun_at)
            for transfer_id, t in self._live.items()
        }

    @property
    def is_ready(self) -> bool:
        """False while so much is quarantined that new requests had better go elsewhere (R6)."""
        return self.pool.stats().quarantined <= self.limits.max_quarantined_blocks

    @property
    def writing(self) -> dict[str, int]:
        """The transfers whose writer may write now, and that writer: its liveness matters."""
        return {
            transfer_id: transfer.reserve.writer_instance_id
            for transfer_id, transfer in self._live.items()
            if transfer.state in (Receiving.RECEIVING, Receiving.RESUMING)
        }

    @property
    def writers(self) -> set[int]:
        """Every writer that may still write, those of quarantined blocks among them."""
        return {t.reserve.writer_instance_id for t in self._live.values() if t.open}

    def waited_s(self, transfer_id: str) -> float:
        """Seconds that a transfer queued for its last grant; not the time until its blocks were
        home, which is its writer's. Raises `Refused` if it is not live.
        """
        return self._require(transfer_id).waited_s

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def assembled_tokens(self) -> int:
        return self._assembled_tokens

    # Private.

    def _require(self, transfer_id: str) -> _Transfer:
        transfer = self._live.get(transfer_id)
        if transfer is None or transfer.state is Receiving.QUARANTINED:  # or given up
            raise Refused(Reason.UNKNOWN_TRANSFER, f"no live transfer {transfer_id}")
        return transfer

    def _learn_length(self, transfer: _Transfer, total_tokens: int) -> None:
        if transfer.total_tokens == total_tokens:
            return
        if transfer.total_tokens is not None:
            raise ProtocolError(
                f"{transfer.transfer_id} had {transfer.total_tokens} tokens, now {total_tokens}"
            )
        limit = self.limits.max_assembled_tokens
        if total_tokens > limit:
            raise Refused(
                Reason.TOO_LONG,
                f"the media item needs {total_tokens} tokens, this worker assembles {limit} at "
                "most (--mm-resume-max-assembled-mib): send a smaller one",
            )
        if self._assembled_tokens + total_tokens > limit:
            raise Refused(
                Reason.OVERLOADED,
                f"embeddings of {self._assembled_tokens} tokens are being assembled already "
                "(--mm-resume-max-assembled-mib): try again later",
            )
        transfer.total_tokens = total_tokens
        self._assembled_tokens += total_tokens
        self.lengths.add(total_tokens)
        if self.limits.adaptive:
            self._adapt_default()

    def _adapt_default(self) -> None:
        usual = self.lengths.usual
        if usual is not None:
            most = max(1, self.pool.num_blocks // ADAPTED_SHARE)
            self.pool.default_blocks = min(blocks_for(usual, self.pool.block_size), most)

    def _forget_length(self, transfer: _Transfer) -> None:
        self._assembled_tokens -= transfer.total_tokens or 0
        transfer.total_tokens = None

    def _blocks_wanted(self, transfer: _Transfer) -> int:
        """Blocks of the next grant: what remains, but never more than half the pool.

        Half, so that a long embedding leaves room for others and can fill one half while the
        other is copied out.
        """
        if not self.limits.resumable or transfer.total_tokens is None:
            return 0
        remaining = transfer.total_tokens - transfer.granted_tokens
        largest = max(self.pool.default_blocks, self.pool.num_blocks // 2)
        return min(blocks_for(max(0, remaining), self.pool.block_size), largest)

    def _queue_if_home(self, transfer: _Transfer, now: float) -> list[Effect]:
        """After a grant came home, or a resume came in: queue, finish, or wait on."""
        if transfer.open:
            return []
        if transfer.state in (Receiving.RECEIVING, Receiving.RESUMING):
            assembled = transfer.granted_tokens >= (transfer.total_tokens or 0)
            self._move(transfer, ReceivingEvent.FINISH if assembled else ReceivingEvent.DRAIN)
            transfer.deadline = now + self._patience(transfer.state)
        if transfer.state is Receiving.COMPLETE:
            total_tokens = transfer.total_tokens or 0
            return [Completed(transfer.transfer_id, total_tokens, transfer.rounds)]
        if transfer.state is Receiving.WAITING:
            wanted = self._blocks_wanted(transfer)
            transfer.queued_at = now
            self._queue.push(transfer.transfer_id, wanted, transfer.reserve.priority)
            return self._pump(now)
        return []

    def _pump(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for transfer_id, lease in self._queue.pump():
            transfer = self._live[transfer_id]
            transfer.waited_s = now - transfer.queued_at
            grant = self._give(transfer, lease, now)
            effects.append(GrantMade(transfer_id, grant, transfer.waited_s))
        return effects

    def _give(self, transfer: _Transfer, lease: Lease, now: float) -> Grant:
        grant = Grant(
            transfer_id=transfer.transfer_id,
            generation=lease.generation,
            first_token=transfer.granted_tokens,
            blocks=lease.blocks,
            block_size=self.pool.block_size,
            chunk_blocks=self.limits.chunk_blocks,
            valid_s=self.limits.wait_timeout_s,
            resumable=self.limits.resumable,
        )
        self._move(transfer, ReceivingEvent.GRANT)
        transfer.open[grant.generation] = _OpenGrant(grant, lease)
        transfer.granted_tokens = grant.end_token
        transfer.rounds += 1
        transfer.deadline = now + self.limits.wait_timeout_s
        return grant

    def _end(
        self, transfer: _Transfer, writer_closed: bool, error: ResumeError, now: float
    ) -> list[Effect]:
        may_write = bool(transfer.open) and not writer_closed
        event = ReceivingEvent.QUARANTINE if may_write else ReceivingEvent.GIVE_UP
        return self._leave(transfer, event, error, now)

    def _leave(
        self, transfer: _Transfer, event: ReceivingEvent, error: ResumeError, now: float
    ) -> list[Effect]:
        """The transfer is over. Where `event` leads decides what becomes of its blocks."""
        ended = Ended(transfer.transfer_id, error)
        self._queue.cancel(transfer.transfer_id)
        self._forget_length(transfer)
        self._move(transfer, event)
        if transfer.state is Receiving.QUARANTINED:
            for granted in transfer.open.values():
                self.pool.quarantine(granted.lease)
            transfer.deadline = now + self.limits.settle_interval_s
            writer = transfer.reserve.writer_instance_id
            return [ended, AskWriter(transfer.transfer_id, writer), *self._pump(now)]
        for granted in transfer.open.values():
            self.pool.release(granted.lease)
        self._bury(transfer)
        return [ended, *self._pump(now)]

    def _bury(self, transfer: _Transfer) -> None:
        del self._live[transfer.transfer_id]
        self._remember(transfer.transfer_id)

    def _remember(self, transfer_id: str) -> None:
        self._closed[transfer_id] = None
        if len(self._closed) > TOMBSTONES:
            self._closed.popitem(last=False)

    def _patience(self, state: Receiving) -> float:
        """Seconds until the next event must come. A complete embedding holds no block, and its
        request may have many more on their way: it is given longer.
        """
        timeout_s = self.limits.wait_timeout_s
        return CLAIM_PATIENCE * timeout_s if state is Receiving.COMPLETE else timeout_s

    def _timeout(self, transfer: _Transfer) -> ResumeError:
        waited = f"{self.limits.wait_timeout_s:g} s (--mm-bootstrap-timeout)"
        if transfer.state is Receiving.WAITING:
            return Refused(Reason.TIMEOUT, f"no block became free within {waited}")
        return TransferFailed(f"nothing arrived for {transfer.transfer_id} within {waited}")

    def _odd(self, oddity: Oddity) -> list[Effect]:
        self.oddities[oddity] += 1
        return []

    def _move(self, transfer: _Transfer, event: ReceivingEvent) -> None:
        transfer.state = step(RECEIVING, transfer.state, event)


def _matching_chunk(grant: Grant, notice: ChunkNotice, total_tokens: int | None) -> Chunk | None:
    """The chunk of `grant` that `notice` is about, or `None` if it does not fit."""
    if total_tokens is not None and notice.total_tokens != total_tokens:
        return None
    chunks = chunks_of(grant, notice.total_tokens)
    if notice.chunk >= len(chunks):
        return None
    chunk = chunks[notice.chunk]
    fits = (chunk.first_token, chunk.num_tokens) == (notice.first_token, notice.num_tokens)
    return chunk if fits else None
