# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Drives the sending side: stages chunks in our own pool and writes them, around core/sender.py.

A chunk goes  embedding rows ─copy─▶ our blocks ─NIXL WRITE─▶ the receiver's blocks.  Our blocks are
taken per chunk and only after the receiver's are granted, always in that order, so that nobody
who holds the one can wait for somebody who holds the other (R4).
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.messages import Chunk, Grant, Sent
from dynamo.sglang_mm_resume.core.queue import GrantQueue
from dynamo.sglang_mm_resume.core.sender import Sender
from dynamo.sglang_mm_resume.core.transitions import Sending
from dynamo.sglang_mm_resume.transport.checksum import checksum_of
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, PeerLost
from dynamo.sglang_mm_resume.transport.tasks import unless

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: One chunk is written while the next is staged; more would only hold blocks.
CHUNKS_UNDER_WAY: Final = 2

#: A transfer without a grant waits for so many validities of its last one: a receiver gives up one
#: that drains, and one that queues, after one validity each.
STARVED_PATIENCE: Final = 2

#: Seconds that a worker which shuts down waits for writes to end.
CLOSE_TIMEOUT_S: Final = 10.0

#: Closed transfers that are remembered: an `Encode` that comes after its `Close` is refused.
TOMBSTONES: Final = 4096


@dataclass(slots=True)
class WriterTotals:
    """Counters since the start, for /metrics."""

    transfers: int = 0
    chunks: int = 0
    bytes: int = 0
    write_seconds: float = 0.0
    failures: int = 0


class StagingPool:
    """Our own blocks, or turns to post, lent per chunk in order of arrival."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._queue = GrantQueue(pool)
        self._waiting: dict[str, asyncio.Future[Lease]] = {}
        self._borrowers = 0

    async def borrow(self, num_blocks: int) -> Lease:
        """`num_blocks` blocks as soon as they are free; those before us come first."""
        self._borrowers += 1
        key = str(self._borrowers)
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        self._queue.push(key, num_blocks)
        self._serve()
        try:
            return await future
        except asyncio.CancelledError:
            self._queue.cancel(key)
            if future.done() and not future.cancelled():
                self.give_back(future.result())
            else:
                self._serve()  # those behind us may fit
            raise
        finally:
            self._waiting.pop(key, None)

    async def borrow_unless_over(
        self, num_blocks: int, closed: asyncio.Event, deadline: float
    ) -> Lease:
        """`borrow`, but raises `TransferFailed` once `closed` is set or `deadline` has passed."""
        borrowing = asyncio.ensure_future(self.borrow(num_blocks))
        over = asyncio.ensure_future(closed.wait())
        patience_s = max(0.0, deadline - time.monotonic())
        try:
            await asyncio.wait(
                (borrowing, over), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            over.cancel()
        if borrowing.done():
            return borrowing.result()
        borrowing.cancel()  # gives back what it may be lent in this very moment
        await asyncio.gather(borrowing, return_exceptions=True)
        why = "was closed" if closed.is_set() else "expired"
        raise TransferFailed(f"the transfer {why} while its chunk waited to be posted")

    def give_back(self, lease: Lease) -> None:
        self.pool.release(lease)
        self._serve()

    @property
    def is_idle(self) -> bool:
        """Nobody has borrowed anything, and nobody waits."""
        return not self._waiting and self.pool.stats().held == 0

    def _serve(self) -> None:
        for key, lease in self._queue.pump():
            if self._waiting[key].cancelled():
                self.give_back(lease)
            else:
                self._waiting[key].set_result(lease)


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
        self._unreported_bytes = 0
        self._drained_at = 0.0

    def add_grant(self, grant: Grant) -> None:
        """More room. Raises `ProtocolError` if it does not continue the last grant."""
        self.sender.add_grant(grant, time.monotonic())
        self._valid_s = grant.valid_s
        self._changed.set()

    async def send(self, rows: torch.Tensor) -> AsyncIterator[Sent]:
        """Write `rows`, `(total_tokens, width)`, as grants allow; report each filled grant.

        Raises `TransferFailed` if a grant expires, the peer is lost, or `close` is called.
        """
        self._require_open()
        self.sender.encoded(len(rows))
        self._writer.expect(+1)
        under_way: deque[tuple[Chunk, asyncio.Task[None]]] = deque()
        try:
            while self.sender.state is not Sending.DONE:
                self._start_writes(under_way, rows)
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
        num_bytes, self._unreported_bytes = self._unreported_bytes, 0
        return Sent(
            generation=chunk.generation,
            sent_tokens=chunk.first_token + chunk.num_tokens,
            num_bytes=num_bytes,
        )

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
        self, under_way: "deque[tuple[Chunk, asyncio.Task[None]]]", rows: torch.Tensor
    ) -> None:
        """Stage the next chunk while one is written. Each in a task of its own, which no
        cancelled request can orphan.
        """
        while len(under_way) < CHUNKS_UNDER_WAY:
            chunk = self.sender.next_chunk(time.monotonic())
            if chunk is None:
                return
            part = rows[chunk.first_token : chunk.first_token + chunk.num_tokens]
            write = asyncio.ensure_future(self._writer.write_chunk(self, part, chunk))
            self._writes.add(write)
            write.add_done_callback(self._forget_write)
            under_way.append((chunk, write))
            self._unreported_bytes += part.numel() * part.element_size()


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
    ) -> None:
        """`max_posts`: writes posted at once per receiver, so that a hung one stalls no other."""
        self.totals = WriterTotals()
        self.expect = agent.expect
        self.staging = StagingPool(pool)
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
    def live(self) -> dict[str, Sending]:
        """Every transfer that is not closed, by id."""
        return {transfer_id: out.sender.state for transfer_id, out in self._live.items()}

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

    async def write_chunk(self, outgoing: Outgoing, rows: torch.Tensor, chunk: Chunk) -> None:
        """Stage and write one chunk; its notice leaves with its last piece.

        A pool smaller than a chunk stages it in pieces. They are written one after the other,
        because NIXL does not order notifications of different writes. What waits, waits until the
        grant expires or the transfer is closed; what is posted, ends by itself.
        """
        size = min(len(chunk.blocks), self.staging.pool.num_blocks)
        checksum = await self._in_thread(checksum_of, rows) if self.checksum else None
        notice = outgoing.sender.notice(chunk, checksum).model_dump_json().encode()
        deadline = outgoing.sender.deadline_of(chunk)
        turns = self._turns_of(outgoing.agent)
        turn = await turns.borrow_unless_over(1, outgoing.closed, deadline)
        try:
            started = time.monotonic()
            for first in range(0, len(chunk.blocks), size):
                remote = chunk.blocks[first : first + size]
                last = first + size >= len(chunk.blocks)
                begin = first * self._memory.layout.block_size
                piece = rows[begin : begin + len(remote) * self._memory.layout.block_size]
                payload = notice if last else b""
                await self._write_piece(outgoing, piece, remote, payload, deadline)
            self.totals.chunks += 1
            self.totals.bytes += rows.numel() * rows.element_size()
            self.totals.write_seconds += time.monotonic() - started
        finally:
            turns.give_back(turn)
            if turns.is_idle:  # receivers come and go
                self._turns.pop(outgoing.agent, None)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _turns_of(self, agent: str) -> StagingPool:
        if agent not in self._turns:
            self._turns[agent] = StagingPool(BlockPool(self._max_posts, 1, 1))
        return self._turns[agent]

    async def _write_piece(
        self,
        outgoing: Outgoing,
        rows: torch.Tensor,
        remote: tuple[int, ...],
        payload: bytes,
        deadline: float,
    ) -> None:
        lease = await self.staging.borrow_unless_over(len(remote), outgoing.closed, deadline)
        try:
            await self._in_thread(self._memory.scatter, rows, lease.blocks)
            await self._agent.write(outgoing.agent, lease.blocks, remote, payload, deadline)
        except TransferFailed:
            self.totals.failures += 1
            raise
        finally:
            # The write has ended, well or badly: our blocks are nobody's source any more.
            self.staging.give_back(lease)
