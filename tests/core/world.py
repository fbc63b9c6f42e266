# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A small world around the core: many transfers, one receiver, memory, a network and a clock.

It carries out what the core decides, one small action at a time, in any order a test likes, and
checks the rules after each. It imitates the drivers as far as the rules need: copies read memory
when they end and are compared with what was sent, a writer writes one chunk at a time, a writer
that was told to close refuses grants that arrive later, a dead or stopped writer's last write may
still land, and a stopped one goes on as if nothing had been. It does not imitate threads.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.errors import (
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
from dynamo.sglang_mm_resume.core.layout import blocks_for
from dynamo.sglang_mm_resume.core.messages import Chunk, ChunkNotice, Grant, Reserve, Sent, Sized
from dynamo.sglang_mm_resume.core.receiver import (
    AskWriter,
    Completed,
    CopyOut,
    Effect,
    Ended,
    GrantMade,
    Receiver,
    ReceiverLimits,
)
from dynamo.sglang_mm_resume.core.sender import Sender
from dynamo.sglang_mm_resume.core.transitions import Receiving, Sending, Shaking

TIMEOUT_S = 30.0
SETTLE_S = 5.0
PLENTY = 10**6

#: What a row holds whose bytes are not those that were sent, or are no numbers.
SPOILT = ("nobody", -1)


@dataclass
class Write:
    """A chunk on its way: `cells` are the pool rows it still writes, with their tokens."""

    item: "Item"
    chunk: Chunk
    cells: deque[tuple[int, int]]


@dataclass(eq=False)
class Item:
    """One transfer as the processor, its writer and the receiver's driver see it."""

    transfer_id: str
    total_tokens: int
    priority: int
    clock_offset: float  # the writer's clock against the receiver's
    handshake: Handshake
    # On the processor.
    cares: bool = True  # the request is alive, as far as the processor knows
    retried: bool = False
    # Between processor and writer.
    encode: Grant | None = None  # the default grant, on its way
    forwards: deque[Grant] = field(default_factory=deque)  # further grants, on their way
    stream: deque[Sized | Sent] = field(default_factory=deque)  # answers, on their way
    # On the writer.
    sender: Sender | None = None
    delivered: dict[int, tuple[Grant, float]] = field(default_factory=dict)  # and until when
    posted: set[tuple[int, int]] = field(default_factory=set)
    write: Write | None = None
    closed: bool = False  # told to close: takes no grant any more
    dead: bool = False
    paused: bool = False  # stopped where it is; time passes for its grants all the same
    # On the receiver's driver.
    granted: Grant | None = None  # made for whoever asked, who has not heard of it yet
    asker_lost: bool = False  # the call that waits for a grant was stopped; the core hears of it
    copies: list[CopyOut] = field(default_factory=list)
    copied_out: set[tuple[int, int]] = field(default_factory=set)
    assembled: dict[int, tuple[str, int]] = field(default_factory=dict)
    completed: bool = False
    ended: Exception | None = None
    asked: bool = False  # the receiver wants to know that the writer is closed

    @property
    def quiet(self) -> bool:
        """The writer can promise that nothing is in flight and nothing will be."""
        if self.dead:
            return self.write is None
        if self.paused:
            return False
        return self.closed and (self.sender is None or self.sender.state is Sending.CLOSED)

    def possible_writes(self) -> list[Chunk]:
        """Every chunk that this writer may still write, now or later."""
        chunks = [self.write.chunk] if self.write and self.write.cells else []
        if self.closed or self.dead:
            return chunks
        on_their_way = [*([self.encode] if self.encode else []), *self.forwards]
        for grant in [*on_their_way, *(grant for grant, _ in self.delivered.values())]:
            chunks += [
                chunk
                for chunk in chunks_by_rule(grant, self.total_tokens)
                if (chunk.generation, chunk.index) not in self.posted
            ]
        return chunks


def chunks_by_rule(grant: Grant, total_tokens: int) -> list[Chunk]:
    """R2 once more, in other words than core/messages.py: token by token."""
    chunks: dict[int, list[int]] = {}
    for token in range(grant.first_token, min(grant.end_token, total_tokens)):
        position = (token - grant.first_token) // grant.block_size
        chunks.setdefault(position // grant.chunk_blocks, []).append(token)
    return [
        Chunk(
            generation=grant.generation,
            index=index,
            first_token=tokens[0],
            num_tokens=len(tokens),
            blocks=tuple(
                dict.fromkeys(
                    grant.blocks[(token - grant.first_token) // grant.block_size]
                    for token in tokens
                )
            ),
        )
        for index, tokens in chunks.items()
    ]


class World:
    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        default_blocks: int,
        chunk_blocks: int,
        max_waiting: int = PLENTY,
        max_assembled_tokens: int = PLENTY,
        max_quarantined_blocks: int = PLENTY,
    ) -> None:
        self.pool = BlockPool(num_blocks, block_size, default_blocks)
        limits = ReceiverLimits(
            wait_timeout_s=TIMEOUT_S,
            max_waiting=max_waiting,
            max_assembled_tokens=max_assembled_tokens,
            chunk_blocks=chunk_blocks,
            resumable=True,
            settle_interval_s=SETTLE_S,
            max_quarantined_blocks=max_quarantined_blocks,
        )
        self.receiver = Receiver(self.pool, limits)
        self.memory: list[tuple[str, int] | None] = [None] * (num_blocks * block_size)
        self.items: dict[str, Item] = {}
        self.network: list[ChunkNotice] = []
        self.delivered: list[ChunkNotice] = []
        self.now = 1000.0
        self.waiting: list[tuple[int, int, str, int]] = []  # -priority, arrival, id, blocks
        self.arrivals = 0

    # Actions. Those with a condition return the items they are possible for.

    def reserve(self, total_tokens: int, priority: int, clock_offset: float) -> Item:
        transfer_id = f"transfer-{len(self.items)}"
        item = Item(transfer_id, total_tokens, priority, clock_offset, Handshake(transfer_id))
        self.items[transfer_id] = item
        message = Reserve(transfer_id=transfer_id, writer_instance_id=1, priority=priority)
        before, full = self.snapshot(), self.is_full
        try:
            self.carry_out(item, lambda: self.receiver.reserve(message, self.now))
        except Refused as refused:
            assert full and refused.reason is Reason.OVERLOADED
            assert self.snapshot() == before, "R7: what is turned away costs nothing"
            del self.items[transfer_id]  # its id was never used
        else:
            assert not full, "R7: beyond a limit"
        return item

    @property
    def is_full(self) -> bool:
        """No further transfer may come (R7)."""
        limits = self.receiver.limits
        quarantined = self.pool.stats().quarantined
        return (
            len(self.waiting) >= limits.max_waiting or quarantined > limits.max_quarantined_blocks
        )

    def require_used(self, transfer_id: str) -> None:
        """R13: a reserve is refused, and nothing stays."""
        before = self.snapshot()
        try:
            self.receiver.reserve(Reserve(transfer_id=transfer_id, writer_instance_id=1), self.now)
        except Refused as refused:
            assert refused.reason is Reason.DUPLICATE
        else:
            raise AssertionError("a transfer id was used twice")
        assert self.snapshot() == before

    def can_open(self) -> list[Item]:
        return [item for item in self.items.values() if item.encode and not item.paused]

    def open(self, item: Item) -> None:
        """The encode request reaches the writer, which answers with the length."""
        grant, item.encode = item.encode, None
        if grant is None or item.closed or item.dead:
            return
        now = self.now + item.clock_offset
        item.sender = Sender(grant, self.pool.num_blocks, now)
        item.delivered[grant.generation] = (grant, now + grant.valid_s)
        item.stream.append(
            Sized(total_tokens=item.total_tokens, grid=(1, 2, 2), content_hash="0" * 16)
        )

    def can_encode(self) -> list[Item]:
        return [i for i in self.working() if i.sender and i.sender.state is Sending.ENCODING]

    def encode(self, item: Item) -> None:
        assert item.sender
        item.sender.encoded(item.total_tokens)

    def can_forward(self) -> list[Item]:
        return [
            item
            for item in self.items.values()
            if item.forwards and not item.encode and not item.paused
        ]

    def forward(self, item: Item) -> None:
        """A further grant reaches the writer."""
        grant = item.forwards.popleft()
        if item.closed or item.dead or not item.sender:
            return
        now = self.now + item.clock_offset
        item.sender.add_grant(grant, now)
        item.delivered[grant.generation] = (grant, now + grant.valid_s)

    def can_post(self) -> list[Item]:
        return [
            item
            for item in self.working()
            if item.sender and item.sender.state is Sending.SENDING and not item.write
        ]

    def post(self, item: Item) -> None:
        assert item.sender
        now = self.now + item.clock_offset
        try:
            chunk = item.sender.next_chunk(now)
        except TransferFailed:
            self.close_writer(item)
            self.give_up(item)
            return
        if chunk is None:
            return
        assert now <= item.delivered[chunk.generation][1], "R8: posted after its grant expired"
        key = (chunk.generation, chunk.index)
        assert key not in item.posted, "posted twice"
        item.posted.add(key)
        cells = [
            (
                chunk.blocks[i // self.pool.block_size] * self.pool.block_size
                + i % self.pool.block_size,
                chunk.first_token + i,
            )
            for i in range(chunk.num_tokens)
        ]
        item.write = Write(item, chunk, deque(cells))

    def can_land(self) -> list[Item]:
        return [item for item in self.items.values() if item.write and item.write.cells]

    def land(self, item: Item, num_tokens: int, spoilt: bool = False) -> None:
        """Some tokens reach the receiver's memory, whoever owns it by now; the last one is
        followed by the notice. With `spoilt`, they are not the bytes that were sent."""
        assert item.write
        for _ in range(min(num_tokens, len(item.write.cells))):
            row, token = item.write.cells.popleft()
            assert self.owner_of(row) == item.transfer_id, "R6: written into another's block"
            self.memory[row] = SPOILT if spoilt else (item.transfer_id, token)
        if not item.write.cells and not item.dead and item.sender:
            self.network.append(item.sender.notice(item.write.chunk))

    def can_finish_write(self) -> list[Item]:
        return [i for i in self.items.values() if i.write and not i.write.cells and not i.paused]

    def finish_write(self, item: Item) -> None:
        """The writer learns that its write has ended."""
        assert item.write
        chunk, item.write = item.write.chunk, None
        if item.dead:
            return
        assert item.sender
        if item.sender.written(chunk):
            sent_tokens = chunk.first_token + chunk.num_tokens
            item.stream.append(
                Sent(generation=chunk.generation, sent_tokens=sent_tokens, num_bytes=1)
            )

    def can_fail_write(self) -> list[Item]:
        return [item for item in self.can_land() if not item.paused]

    def fail_write(self, item: Item) -> None:
        """The write ends badly, with some of its tokens written."""
        item.write = None
        if not item.dead:
            assert item.sender
            item.sender.write_failed()
            self.close_writer(item)
            self.give_up(item)

    def can_read_stream(self) -> list[Item]:
        return [item for item in self.items.values() if item.stream and item.cares]

    def read_stream(self, item: Item) -> None:
        """The processor reads one answer of the writer and does what the handshake says."""
        message = item.stream.popleft()
        if isinstance(message, Sized):
            self.act(item, lambda: item.handshake.sized(message))
        else:
            self.act(item, lambda: item.handshake.sent(message))

    def deliver(self, index: int) -> None:
        """A notice arrives; the order of arrival is the test's choice."""
        notice = self.network.pop(index % len(self.network))
        self.delivered.append(notice)
        self.hear(notice)

    def hear(self, notice: ChunkNotice) -> None:
        item = self.items.get(notice.transfer_id)
        key = (notice.generation, notice.chunk)
        seen_before = item is not None and key in item.copied_out
        effects = self.carry_out(item, lambda: self.receiver.landed(notice, self.now))
        if seen_before:
            assert effects == [], "R9: a second notice of a chunk changed something"

    def hear_garbage(self, notice: ChunkNotice) -> None:
        """R8: what matches no live chunk changes nothing and is counted."""
        before = self.snapshot()
        odd = sum(self.receiver.oddities.values())
        assert self.receiver.landed(notice, self.now) == []
        assert self.snapshot() == before
        assert sum(self.receiver.oddities.values()) == odd + 1

    def open_chunks(self) -> list[ChunkNotice]:
        """Right notices of all chunks that are granted and have not landed."""
        return [
            ChunkNotice(
                transfer_id=item.transfer_id,
                generation=chunk.generation,
                chunk=chunk.index,
                first_token=chunk.first_token,
                num_tokens=chunk.num_tokens,
                total_tokens=item.total_tokens,
            )
            for item in self.items.values()
            if item.ended is None
            for grant, _ in item.delivered.values()
            for chunk in chunks_by_rule(grant, item.total_tokens)
            if (chunk.generation, chunk.index) not in item.copied_out
        ]

    def can_copy(self) -> list[Item]:
        return [item for item in self.items.values() if item.copies]

    def finish_copy(self, item: Item, index: int) -> None:
        """A thread has copied a chunk's rows, which are what memory holds now, and compared them
        with what was sent."""
        chunk, size = item.copies.pop(index % len(item.copies)).chunk, self.pool.block_size
        rows = {
            chunk.first_token + i: self.memory[chunk.blocks[i // size] * size + i % size]
            for i in range(chunk.num_tokens)
        }
        if SPOILT in rows.values():
            self.refuse_rows(item)
            return
        if item.ended is None:
            for token, value in rows.items():
                assert value == (item.transfer_id, token), f"wrong answer: {value} at {token}"
                item.assembled[token] = value
        self.carry_out(item, lambda: self.receiver.copied(item.transfer_id, chunk, self.now))

    def refuse_rows(self, item: Item) -> None:
        """The transfer ends for this very reason, and its writer may still write."""
        corrupt = Refused(Reason.CORRUPT, "not what was sent")
        cause, before = item.ended, self.snapshot()
        self.end(item, corrupt)
        if cause is None:
            assert item.ended is corrupt, "it ended for another reason, or not at all"
            assert self.receiver.live[item.transfer_id] is Receiving.QUARANTINED, "R6"
        else:  # it had been given up meanwhile
            assert item.ended is cause
            assert self.snapshot() == before

    def fail_copy(self, item: Item, index: int) -> None:
        """A chunk cannot be copied out."""
        item.copies.pop(index % len(item.copies))
        self.end(item, TransferFailed("not copied"))

    def end(self, item: Item, error: ResumeError, writer_closed: bool = False) -> None:
        """The receiver's own driver gives a transfer up; the processor has yet to hear of it."""
        self.carry_out(
            item, lambda: self.receiver.abort(item.transfer_id, writer_closed, error, self.now)
        )
        state = self.receiver.live.get(item.transfer_id)
        assert state is None or (state is Receiving.QUARANTINED and not writer_closed), "R16"

    def can_take(self) -> list[Item]:
        return self.in_state(Receiving.COMPLETE)

    def take(self, item: Item) -> None:
        self.receiver.take(item.transfer_id)

    def drop(self, item: Item) -> None:
        """The engine is done with an embedding, or its request ended before."""
        self.abort(item, writer_closed=False)

    def abort(self, item: Item, writer_closed: bool) -> None:
        """The processor gives up; `writer_closed` only if the writer has promised it."""
        item.cares = False
        assert item.quiet or not writer_closed
        self.end(item, TransferFailed("aborted"), writer_closed)

    def give_up(self, item: Item) -> None:
        """The processor sees an error and ends its request; it promises nothing about writes."""
        if item.cares:
            self.abort(item, writer_closed=False)

    def cared_for(self) -> list[Item]:
        """Those whose processor still wants them."""
        return [item for item in self.items.values() if item.cares]

    def lose_processor(self, item: Item) -> None:
        """It is gone without a word: nobody reads the writer's answers or passes grants on."""
        item.cares = False

    def can_lose_asker(self) -> list[Item]:
        """Those for which a call to the receiver waits: a reserve, or a resume."""
        return [
            self.items[name]
            for name, state in self.receiver.live.items()
            if state in (Receiving.WAITING, Receiving.GRANTED, Receiving.RESUMING)
            and not self.items[name].asker_lost
        ]

    def lose_asker(self, item: Item) -> None:
        """The processor died, and its call is stopped; its writer may go on as if nothing was."""
        item.cares, item.asker_lost = False, True

    def can_miss_asker(self) -> list[Item]:
        return [item for item in self.items.values() if item.asker_lost and item.ended is None]

    def miss_asker(self, item: Item) -> None:
        """The receiver's driver comes to the call that was stopped."""
        item.granted = None
        error = TransferFailed("its request was cancelled")
        self.carry_out(item, lambda: self.receiver.asker_gone(item.transfer_id, error, self.now))
        assert item.ended is error, "R16: whoever asked is gone, and its transfer goes on"

    def shut_down(self) -> None:
        """The receiver gives up all that it has (the grace period is over)."""
        for name in self.receiver.live:
            self.end(self.items[name], TransferFailed("this worker shuts down"))
        assert set(self.receiver.live.values()) <= {Receiving.QUARANTINED}

    def close_writer(self, item: Item) -> None:
        """It gives this transfer up, and takes no further grant for it."""
        item.closed = True
        if item.sender and not item.dead:
            item.sender.close()

    def kill_writer(self, item: Item) -> None:
        """The process is gone; what it posted may still land."""
        item.dead, item.paused = True, False

    def can_drain(self) -> list[Item]:
        return [item for item in self.items.values() if item.dead and item.asked]

    def drain(self, item: Item) -> None:
        """The drain time of a dead writer has passed: what has not landed, never will."""
        item.write = None
        self.answer(item)

    def pause_writer(self, item: Item) -> None:
        """SIGSTOP: it does nothing, and does not know that time passes."""
        item.paused = True

    def can_go_on(self) -> list[Item]:
        return [item for item in self.items.values() if item.paused]

    def go_on(self, item: Item) -> None:
        """SIGCONT"""
        item.paused = False

    def can_retry(self) -> list[Item]:
        """Items of which the receiver may still get late bytes, and nobody has asked again."""
        return [i for i in self.in_state(Receiving.QUARANTINED) if not i.retried]

    def retry(self, item: Item, clock_offset: float) -> Item:
        """R13: the processor tries another writer, under a fresh transfer id."""
        item.retried = True
        return self.reserve(item.total_tokens, item.priority, clock_offset)

    def abort_before_reserve(self) -> None:
        """An abort that overtakes its reserve: the reserve is refused, and nothing stays."""
        transfer_id = f"overtaken-{self.arrivals}"
        error = TransferFailed("aborted")
        assert self.receiver.abort(transfer_id, False, error, self.now) == []
        self.require_used(transfer_id)

    def can_answer(self) -> list[Item]:
        return [item for item in self.items.values() if item.asked and not item.paused]

    def lose_question(self, item: Item) -> None:
        """A writer that hangs does not answer; only the receiver's clock asks again."""
        item.asked = False

    def answer(self, item: Item) -> None:
        """The writer is asked to close; the receiver hears of it once it is quiet."""
        self.close_writer(item)
        if item.quiet:
            item.asked = False
            self.carry_out(item, lambda: self.receiver.writer_settled(item.transfer_id, self.now))

    def advance(self, seconds: float) -> None:
        """Time passes, unnoticed as yet."""
        self.now += seconds

    def tick(self) -> None:
        overdue = self.receiver.live.keys()
        effects = self.carry_out(None, lambda: self.receiver.tick(self.now))
        granted = {e.transfer_id for e in effects if isinstance(e, GrantMade)}
        ended = {e.transfer_id for e in effects if isinstance(e, Ended)}
        assert not granted & ended, "granted and given up in one breath"
        assert ended <= set(overdue)
        deadline = self.receiver.next_deadline()
        assert deadline is None or deadline > self.now

    # What the drivers do with decisions.

    def carry_out(self, subject: Item | None, call: Callable[[], list[Effect]]) -> list[Effect]:
        """Call the receiver, check who was served, and perform the effects."""
        before = self.receiver.live
        effects = call()
        self.note_waiting(subject, before, effects)
        for effect in effects:  # all are decided before anybody hears of the first
            if isinstance(effect, GrantMade):
                self.expect_head(self.items[effect.transfer_id], effect.grant)
            elif isinstance(effect, Ended):
                self.waiting = [w for w in self.waiting if w[2] != effect.transfer_id]
        for effect in effects:
            item = self.items[effect.transfer_id]
            match effect:
                case GrantMade(_, grant, waited_s):
                    assert waited_s >= 0
                    item.granted = grant
                    if item.asker_lost:
                        self.miss_asker(item)
                case CopyOut(_, chunk, total_tokens):
                    key = (chunk.generation, chunk.index)
                    assert total_tokens == item.total_tokens
                    assert key not in item.copied_out, "R9: copied out twice"
                    item.copied_out.add(key)
                    item.copies.append(effect)
                case Completed(_, total_tokens, rounds):
                    assert not item.completed
                    assert (total_tokens, rounds) == (item.total_tokens, item.handshake.rounds)
                    item.completed = True
                case Ended(_, error):
                    assert item.ended is None, "ended twice"
                    item.ended = error
                    item.granted = None
                    if item.handshake.state in (Shaking.RESERVING, Shaking.RESUMING):
                        item.cares = False  # others hear of it when they ask next
                case AskWriter():
                    item.asked = True
        return effects

    def note_waiting(
        self, subject: Item | None, before: dict[str, Receiving], effects: list[Effect]
    ) -> None:
        """Keep our own queue: `subject` has just begun to wait, if anybody has."""
        if subject is None or any(w[2] == subject.transfer_id for w in self.waiting):
            return
        waits = self.receiver.live.get(subject.transfer_id) is Receiving.WAITING
        served = any(
            isinstance(e, GrantMade) and e.transfer_id == subject.transfer_id for e in effects
        )
        if waits or served:
            wanted = self.pool.default_blocks
            if subject.transfer_id in before:
                wanted = self.wanted(subject)
            self.waiting.append((-subject.priority, self.arrivals, subject.transfer_id, wanted))
            self.arrivals += 1

    def wanted(self, item: Item) -> int:
        """What remains, but never more than half the pool or the default grant."""
        remaining = item.total_tokens - item.handshake._granted_tokens
        largest = max(self.pool.default_blocks, self.pool.num_blocks // 2)
        return min(blocks_for(remaining, self.pool.block_size), largest)

    def expect_head(self, item: Item, grant: Grant) -> None:
        """R5: the head of the queue, and all of its wish or nothing."""
        head = min(self.waiting)
        assert head[2] == item.transfer_id, "R5: somebody was overtaken"
        self.waiting.remove(head)
        assert len(grant.blocks) <= head[3]
        if not self.pool.stats().quarantined:
            assert len(grant.blocks) == head[3], "R5: a part of a wish was granted"

    def can_hear(self) -> list[Item]:
        """Those with a grant that whoever asked for it has not heard of."""
        return [i for i in self.items.values() if i.granted is not None and not i.asker_lost]

    def hear_grant(self, item: Item) -> None:
        """The answer leaves the receiver and is the processor's, if that still cares."""
        grant, item.granted = item.granted, None
        assert grant is not None
        self.receiver.answered(item.transfer_id)
        if not item.cares:
            return
        if item.handshake.state is Shaking.RESERVING:
            assert item.handshake.granted(grant) == []
            item.encode = grant
        else:
            self.act(item, lambda: item.handshake.granted(grant))

    def act(self, item: Item, step: Callable[[], list[Action]]) -> None:
        for action in step():
            try:
                self.act_once(item, action)
            except Refused as refused:
                if item.ended is not None:
                    assert refused.reason is Reason.UNKNOWN_TRANSFER, refused
                else:
                    limit = self.receiver.limits.max_assembled_tokens
                    too_long = item.total_tokens > limit
                    assert self.receiver.assembled_tokens + item.total_tokens > limit
                    assert refused.reason is (Reason.TOO_LONG if too_long else Reason.OVERLOADED)
                self.give_up(item)
                return

    def act_once(self, item: Item, action: Action) -> None:
        receiver, transfer_id, total = self.receiver, item.transfer_id, item.total_tokens
        match action:
            case ForwardGrant(grant):
                item.forwards.append(grant)
            case TryGrant():
                tried = receiver.try_grant(transfer_id, total, self.now)
                if tried is None:
                    self.act(item, item.handshake.no_blocks)
                else:
                    assert not self.waiting, "R5: a try overtook somebody who waits"
                    assert len(tried.blocks) == self.wanted(item), "R5: a part was granted"
                    self.act(item, lambda: item.handshake.granted(tried))
            case WaitForGrant(sent_tokens):
                self.carry_out(
                    item, lambda: receiver.resume(transfer_id, sent_tokens, total, self.now)
                )

    # Looking.

    def working(self) -> list[Item]:
        """Those that act by themselves."""
        return [
            item
            for item in self.items.values()
            if not item.closed and not item.dead and not item.paused
        ]

    def in_state(self, state: Receiving) -> list[Item]:
        return [self.items[name] for name, found in self.receiver.live.items() if found is state]

    def owner_of(self, row: int) -> str | None:
        """Whose block a row of memory lies in, quarantined or not."""
        block = row // self.pool.block_size
        return next((x.owner for x in self.pool.leases() if block in x.blocks), None)

    def snapshot(self) -> object:
        return (
            self.receiver.live,
            self.pool.leases(),
            self.pool.stats(),
            self.receiver.next_deadline(),
            self.receiver.assembled_tokens,
            self.receiver.num_waiting,
        )

    def check(self) -> None:
        """The rules that hold between any two actions."""
        self.pool.check()
        stats = self.pool.stats()
        assert stats.free + stats.held + stats.quarantined == stats.total
        limits = self.receiver.limits
        assert self.receiver.assembled_tokens <= limits.max_assembled_tokens, "R7"
        begin = [item for item in self.in_state(Receiving.WAITING) if not item.assembled]
        assert len(begin) <= limits.max_waiting, "R7: those that resume were let in before"
        leases = {lease.generation: lease for lease in self.pool.leases()}
        live = self.receiver.live
        for item in self.items.values():
            for chunk in item.possible_writes():
                lease = leases.get(chunk.generation)
                assert lease is not None, f"R6: {chunk.blocks} may be written but are given away"
                assert lease.owner == item.transfer_id
                assert set(chunk.blocks) <= set(lease.blocks)
            whole = len(item.assembled) == item.total_tokens
            state = live.get(item.transfer_id)
            if item.ended is None:
                over = state in (Receiving.COMPLETE, Receiving.IN_ENGINE)
                assert over == whole == item.completed, "R9: complete means every token"
        owners = {lease.owner for lease in leases.values()}
        for name, state in live.items():
            if state in (Receiving.WAITING, Receiving.DRAINED, Receiving.COMPLETE):
                assert name not in owners, f"R4: {name} is {state} and holds blocks"
            if state is Receiving.QUARANTINED:
                assert name in owners, f"{name} waits for its writer in vain"
            if state is Receiving.GRANTED:
                assert self.items[name].granted is not None, f"nobody will hear of {name}'s grant"
        assert owners <= set(live)
        assert [w[2] for w in sorted(self.waiting)] == sorted(
            (name for name, state in live.items() if state is Receiving.WAITING),
            key=lambda name: next(w for w in self.waiting if w[2] == name),
        )
        if self.waiting:
            wanted = min(min(self.waiting)[3], self.pool.usable_blocks)
            assert not wanted or wanted > stats.free, "the head fits, but was not served"
        if any(state is not Receiving.IN_ENGINE for state in live.values()):
            deadline = self.receiver.next_deadline()
            assert deadline is not None and deadline < math.inf, "nobody would ever end this"

    # Going to the end.

    def progress(self, pick: int) -> bool:
        """One useful action without faults; False if there is none."""
        actions = self.useful(pick)
        if actions:
            actions[pick % len(actions)]()
        return bool(actions)

    def useful(self, pick: int = 0) -> list[Callable[[], None]]:
        """What can go on without faults."""
        options: list[tuple[Callable[[Item], None], list[Item]]] = [
            (self.open, self.can_open()),
            (self.encode, self.can_encode()),
            (self.forward, self.can_forward()),
            (self.post, [item for item in self.can_post() if not self.starved(item)]),
            (lambda item: self.land(item, pick + 1), self.can_land()),
            (self.finish_write, self.can_finish_write()),
            (self.read_stream, self.can_read_stream()),
            (lambda item: self.finish_copy(item, pick), self.can_copy()),
            (self.answer, self.can_answer()),
            (self.hear_grant, self.can_hear()),
            (self.miss_asker, self.can_miss_asker()),
            (self.take, self.can_take()),
            (self.drop, self.in_state(Receiving.IN_ENGINE)),
        ]
        actions = [partial(act, item) for act, items in options for item in items]
        return [*actions, *([partial(self.deliver, pick)] if self.network else [])]

    def starved(self, item: Item) -> bool:
        """Posting would yield nothing: every delivered chunk is posted."""
        return not any(
            (chunk.generation, chunk.index) not in item.posted
            for grant, _ in item.delivered.values()
            for chunk in chunks_by_rule(grant, item.total_tokens)
        )

    def wind_down(self) -> None:
        """No more requests: let every deadline pass and every writer promise to be quiet.

        One that is stopped goes on only when it is asked, long after its grants have expired.
        """
        for _ in range(20 * len(self.items) + 20):
            for item in list(self.items.values()):
                if self.receiver.live.get(item.transfer_id) is Receiving.IN_ENGINE:
                    self.drop(item)
                if item.dead:
                    item.write = None  # the drain has passed
                if item.asked:
                    self.go_on(item)
                    if item in self.can_post() and not self.starved(item):
                        self.post(item)
                    self.close_writer(item)
                    while item.write and item.write.cells:
                        self.land(item, 1)
                    if item.write:
                        self.finish_write(item)
                    self.answer(item)
                self.check()
            deadline = self.receiver.next_deadline()
            if deadline is None:
                break
            if deadline != math.inf:
                self.now = max(self.now, deadline)
                self.tick()
                self.check()
        assert self.receiver.live == {}
        assert self.pool.stats().free == self.pool.num_blocks
        assert self.receiver.assembled_tokens == 0
        assert self.receiver.num_waiting == 0
