# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Drives the sending side: writes chunks as grants allow, around core/sender.py.

A chunk goes  embedding rows ─copy─▶ our blocks ─NIXL WRITE─▶ the receiver's blocks.  An embedding
has our blocks at once or does not wait for them (transport/staging.py); blocks that are waited for
are taken per piece and only after the receiver's are granted, always in that order, so that nobody
who holds the one can wait for somebody who holds the other (R4).
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import torch

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.cache import EmbeddingCache
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.histogram import BYTES_PER_SECOND, SECONDS, Histogram
from dynamo.sglang_mm_resume.core.layout import MAX_CHUNK_BLOCKS
from dynamo.sglang_mm_resume.core.messages import Chunk, Grant, Sent, Sized
from dynamo.sglang_mm_resume.core.progress import Progress
from dynamo.sglang_mm_resume.core.sender import Sender
from dynamo.sglang_mm_resume.core.transitions import Sending
from dynamo.sglang_mm_resume.transport.checksum import checksum_of
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, PeerLost, Write
from dynamo.sglang_mm_resume.transport.staging import Source, Staged, StagingPool, Stored
from dynamo.sglang_mm_resume.transport.tasks import in_thread, unless

logger = logging.getLogger(__name__)

#: Grain of the clock, in seconds: what took less has a speed nevertheless.
CLOCK_S: Final = 1e-9

T = TypeVar("T")

#: Chunks of a transfer that are on their way to be posted: one is written, the others are there
#: when the thread that writes comes to them. More would only hold blocks.
CHUNKS_UNDER_WAY: Final = 3

#: A transfer without a grant waits for so many validities of its last one: a receiver gives up one
#: that drains, and one that queues, after one validity each.
STARVED_PATIENCE: Final = 2

#: Seconds that a worker which shuts down waits for writes to end.
CLOSE_TIMEOUT_S: Final = 10.0

#: Closed transfers that are remembered: an `Encode` that comes after its `Close` is refused.
TOMBSTONES: Final = 4096

#: Blocks that stored embeddings leave to those that are staged: two chunks of the largest kind.
RESERVE_BLOCKS: Final = 2 * MAX_CHUNK_BLOCKS


@dataclass(frozen=True, slots=True)
class _Piece:
    """Consecutive blocks of a chunk that are written together."""

    first_token: int
    num_tokens: int
    remote: tuple[int, ...]
    is_last: bool


@dataclass(slots=True)
class WriterTotals:
    """Counters and histograms since the start; metrics.py says what each is."""

    transfers: int = 0
    chunks: int = 0
    bytes_written: int = 0
    write_failures: int = 0
    chunk_write_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    chunk_bytes_per_second: Histogram = field(default_factory=lambda: Histogram(BYTES_PER_SECOND))


class Outgoing:
    """One transfer on its way to one receiver."""

    def __init__(self, writer: "Writer", sender: Sender, agent: str, valid_s: float) -> None:
        """`valid_s`: validity of the sender's first grant, in seconds."""
        self.sender = sender
        self.agent = agent
        self._valid_s = valid_s
        self._writer = writer
        self._changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._writes: set[asyncio.Task[None]] = set()
        self._reported_tokens = 0
        self._drained_at = 0.0

    def add_grant(self, grant: Grant) -> None:
        """More room. Raises `ProtocolError` if it does not continue the last grant."""
        self.sender.add_grant(grant, time.monotonic())
        self._valid_s = grant.valid_s
        self._changed.set()

    async def send(self, rows: torch.Tensor | Stored) -> AsyncIterator[Sent]:
        """Write `rows`, `(total_tokens, width)`, as grants allow; report each filled grant.

        Raises `TransferFailed` if a grant expires, the peer is lost, or `close` is called.
        """
        self._require_open()
        source = rows if isinstance(rows, Stored) else self._writer.staged(rows)
        self.sender.encoded(source.num_tokens)
        self._writer.expect(+1)
        under_way: deque[tuple[Chunk, asyncio.Task[None]]] = deque()
        try:
            while self.sender.state is not Sending.DONE:
                self._start_writes(under_way, source)
                if not under_way:
                    await self._wait_for_change()
                    continue
                chunk, write = under_way[0]
                await asyncio.shield(write)
                under_way.popleft()
                if self.sender.written(chunk):
                    yield self._report(chunk)
        finally:
            self._writer.expect(-1)
            for _, write in under_way:  # failed, or not waited for any more
                write.add_done_callback(lambda _: self.sender.write_failed())

    async def unless_closed(self, work: Awaitable[T]) -> T:
        """What `work` returns. Raises `TransferFailed`, and cancels it, once we are closed."""
        error = f"transfer {self.sender.transfer_id} was closed"
        return await unless(self._closed.wait(), work, lambda: TransferFailed(error))

    async def close(self) -> None:
        """Post nothing more; returns once nothing is in flight (R6).

        After a write that failed over TCP, bytes may still lie in the receiver's socket: they get
        the drain time to be applied before anybody may think that the blocks are quiet.
        """
        self.sender.close()
        self._closed.set()
        self._changed.set()
        if self._writes:
            await asyncio.wait(self._writes)
        await asyncio.sleep(max(0.0, self._drained_at - time.monotonic()))

    def _forget_write(self, write: "asyncio.Task[None]") -> None:
        self._writes.discard(write)
        # Asking also marks it as seen: a cancelled request does not wait for its writes.
        error = None if write.cancelled() else write.exception()
        never_posted = isinstance(error, TransferFailed) and not isinstance(error, PeerLost)
        if error is not None and not never_posted:
            self._drained_at = time.monotonic() + self._writer.drain_s

    def _report(self, chunk: Chunk) -> Sent:
        """Of the grant that `chunk` has filled: grants are filled in order, and adjoin."""
        sent_tokens = chunk.first_token + chunk.num_tokens
        num_bytes = (sent_tokens - self._reported_tokens) * self._writer.token_bytes
        self._reported_tokens = sent_tokens
        return Sent(generation=chunk.generation, sent_tokens=sent_tokens, num_bytes=num_bytes)

    @property
    def closed(self) -> asyncio.Event:
        """Set once nothing more may be posted."""
        return self._closed

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise TransferFailed(f"transfer {self.sender.transfer_id} was closed")

    async def _wait_for_change(self) -> None:
        """Not for ever: a processor that hangs neither brings a grant nor breaks its stream."""
        self._require_open()
        self._changed.clear()
        patience_s = STARVED_PATIENCE * self._valid_s
        try:
            async with asyncio.timeout(patience_s):
                await self._changed.wait()
        except TimeoutError:
            raise TransferFailed(f"no further grant came within {patience_s:g} s") from None

    def _start_writes(
        self, under_way: "deque[tuple[Chunk, asyncio.Task[None]]]", source: Source
    ) -> None:
        """Stage the next chunk while one is written. Each in a task of its own, which no
        cancelled request can orphan.
        """
        while len(under_way) < CHUNKS_UNDER_WAY:
            chunk = self.sender.next_chunk(time.monotonic())
            if chunk is None:
                return
            write = asyncio.ensure_future(self._writer.write_chunk(self, source, chunk))
            self._writes.add(write)
            write.add_done_callback(self._forget_write)
            under_way.append((chunk, write))


class Writer:
    """All transfers that leave this worker."""

    def __init__(
        self,
        pool: BlockPool,
        memory: PoolMemory,
        agent: NixlAgent,
        threads: Executor,
        max_posts: int,
        drain_s: float,
        checksum: bool = False,
        keep: bool = True,
    ) -> None:
        """`max_posts`: writes posted at once per receiver, so that a hung one stalls no other.

        `keep`: embeddings stay in the pool for as long as there is room.
        """
        self.totals = WriterTotals()
        self.expect = agent.expect
        self.reserve_blocks = min(RESERVE_BLOCKS, -(-pool.num_blocks // 2))
        self.cache = EmbeddingCache(pool, self.reserve_blocks if keep else pool.num_blocks)
        self.staging = StagingPool(pool, self.cache)
        self._memory = memory
        self._agent = agent
        self._threads = threads
        self.drain_s = drain_s
        self.checksum = checksum
        self._max_posts = max_posts
        self._turns: dict[str, StagingPool] = {}
        self._live: dict[str, Outgoing] = {}
        self._closed: OrderedDict[str, None] = OrderedDict()

    @property
    def token_bytes(self) -> int:
        return self._memory.layout.token_bytes

    def staged(self, rows: torch.Tensor) -> Staged:
        """Rows that pass through borrowed blocks."""
        return Staged(rows, self.staging, self._memory, self.reserve_blocks)

    def find(self, key: str) -> Stored | None:
        """What has been stored under `key`, pinned: `unpin` it."""
        entry = self.cache.find(key)
        if entry is None:
            return None
        return Stored(entry, self.cache, self.staging, self._memory)

    def store(self, key: str, sized: Sized, rows: torch.Tensor) -> Stored | None:
        """Blocks for all of `rows`, pinned: `unpin` them. `None`: no room."""
        entry = self.cache.allocate(key, sized)
        if entry is None:
            return None
        return Stored(entry, self.cache, self.staging, self._memory, rows)

    @property
    def num_in_flight(self) -> int:
        """Writes that are posted and have not ended."""
        return self._agent.num_in_flight

    @property
    def live(self) -> dict[str, Sending]:
        """Every transfer that is not closed, by id."""
        return {transfer_id: out.sender.state for transfer_id, out in self._live.items()}

    @property
    def progress(self) -> dict[str, Progress]:
        """How far each of them is."""
        now = time.monotonic()
        return {transfer_id: out.sender.progress(now) for transfer_id, out in self._live.items()}

    def open(self, grant: Grant, agent: str, num_receiver_blocks: int) -> Outgoing:
        """Begin a transfer with its default grant. Raises `ProtocolError` or `Refused`."""
        if grant.transfer_id in self._live or grant.transfer_id in self._closed:
            raise Refused(Reason.DUPLICATE, f"transfer {grant.transfer_id} was used before (R13)")
        self._require_our_blocks(grant)
        sender = Sender(grant, num_receiver_blocks, time.monotonic())
        outgoing = Outgoing(self, sender, agent, grant.valid_s)
        self._live[grant.transfer_id] = outgoing
        self.totals.transfers += 1
        return outgoing

    def forward(self, grant: Grant) -> None:
        """A further grant for a live transfer. Raises `Refused` if it is not live, or closing."""
        outgoing = self._live.get(grant.transfer_id)
        if outgoing is None or outgoing.closed.is_set():
            raise Refused(Reason.UNKNOWN_TRANSFER, f"no live transfer {grant.transfer_id}")
        self._require_our_blocks(grant)
        outgoing.add_grant(grant)

    def _require_our_blocks(self, grant: Grant) -> None:
        ours = self._memory.layout.block_size
        if grant.block_size != ours:
            raise ProtocolError(f"a grant of blocks of {grant.block_size} tokens, ours have {ours}")

    async def close(self, transfer_id: str) -> None:
        """Post nothing more for a transfer; returns once nothing is in flight. Idempotent."""
        self._closed[transfer_id] = None  # at once: an `Encode` may still be on its way
        if len(self._closed) > TOMBSTONES:
            self._closed.popitem(last=False)
        outgoing = self._live.get(transfer_id)
        if outgoing is None:
            return
        await outgoing.close()
        self._live.pop(transfer_id, None)

    async def close_all(self) -> None:
        """Close every transfer. A write to a hung receiver may never end: it is not waited for."""
        closing = [asyncio.ensure_future(self.close(name)) for name in self._live]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_TIMEOUT_S)

    async def write_chunk(self, outgoing: Outgoing, source: Source, chunk: Chunk) -> None:
        """Write one chunk; its notice leaves with its last piece.

        Pieces are written one after the other, because NIXL does not order notifications of
        different writes. What waits, waits until the grant expires or the transfer is closed; what
        is posted, ends by itself.
        """
        checksum = await self._checksum(source, chunk) if self.checksum else None
        notice = outgoing.sender.notice(chunk, checksum).model_dump_json().encode()
        deadline = outgoing.sender.deadline_of(chunk)
        turns = self._turns_of(outgoing.agent)
        turn = await turns.borrow_unless_over(1, outgoing.closed, deadline)
        num_bytes = chunk.num_tokens * self.token_bytes
        about = tracing.span(
            "chunk",
            generation=chunk.generation,
            chunk=chunk.index,
            tokens=chunk.num_tokens,
            bytes=num_bytes,
        )
        try:
            with about:
                for piece in _pieces(chunk, source.max_blocks, self._memory.layout.block_size):
                    await self._write_piece(outgoing, source, piece, notice, deadline)
            self.totals.chunks += 1
            self.totals.bytes_written += num_bytes
        finally:
            turns.give_back(turn)
            if turns.is_idle:  # receivers come and go
                self._turns.pop(outgoing.agent, None)

    async def _checksum(self, source: Source, chunk: Chunk) -> int:
        def compute() -> int:
            return checksum_of(source.rows(chunk.first_token, chunk.num_tokens))

        return await in_thread(self._threads, compute)

    def _turns_of(self, agent: str) -> StagingPool:
        if agent not in self._turns:
            self._turns[agent] = StagingPool(BlockPool(self._max_posts, 1, 1))
        return self._turns[agent]

    async def _write_piece(
        self, outgoing: Outgoing, source: Source, piece: _Piece, notice: bytes, deadline: float
    ) -> None:
        span = (piece.first_token, piece.num_tokens, outgoing.closed, deadline)
        try:
            async with source.lend(*span) as local:
                write = Write(
                    local.blocks,
                    piece.remote,
                    notice if piece.is_last else b"",
                    deadline,
                    local.load,
                )
                seconds = await self._agent.write(outgoing.agent, write)
        except TransferFailed:
            self.totals.write_failures += 1
            raise
        num_bytes = len(piece.remote) * self._memory.layout.block_bytes
        self.totals.chunk_write_seconds.observe(seconds)
        self.totals.chunk_bytes_per_second.observe(num_bytes / max(seconds, CLOCK_S))


def _pieces(chunk: Chunk, max_blocks: int, block_size: int) -> Iterator[_Piece]:
    """Cut a chunk where our own blocks do not suffice for all of it at once."""
    end_token = chunk.first_token + chunk.num_tokens
    for first in range(0, len(chunk.blocks), max_blocks):
        remote = chunk.blocks[first : first + max_blocks]
        first_token = chunk.first_token + first * block_size
        num_tokens = min(len(remote) * block_size, end_token - first_token)
        yield _Piece(first_token, num_tokens, remote, first_token + num_tokens == end_token)
