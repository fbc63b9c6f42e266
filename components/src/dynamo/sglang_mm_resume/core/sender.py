# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The encode worker's side of one transfer: which chunk to post next, and when to stop.

The driver (transport/writer.py) asks for chunks, writes them and reports back. It gives the
time; this module has no clock.
"""

from collections import deque
from dataclasses import dataclass

from dynamo.sglang_mm_resume.core.errors import ProtocolError, TransferFailed
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.core.messages import Chunk, ChunkNotice, Grant, chunks_of
from dynamo.sglang_mm_resume.core.progress import Progress
from dynamo.sglang_mm_resume.core.transitions import SENDING, Sending, SendingEvent, step


@dataclass(slots=True)
class _OpenGrant:
    grant: Grant
    deadline: float  # on our own clock (R8)
    unwritten: set[int]  # chunk indices; filled once the length is known


class Sender:
    """One transfer. Grants arrive in order; chunks leave in order."""

    def __init__(self, grant: Grant, num_receiver_blocks: int, now: float) -> None:
        self.transfer_id = grant.transfer_id
        self.state = Sending.ENCODING
        self.total_tokens: int | None = None
        self._num_receiver_blocks = num_receiver_blocks
        self._open: dict[int, _OpenGrant] = {}
        self._to_post: deque[Chunk] = deque()
        self._in_flight = 0
        self._next_token = 0
        self._newest_generation = -1
        self._begun_at = now
        self._rounds = 0
        self._written_tokens = 0
        self.add_grant(grant, now)

    def add_grant(self, grant: Grant, now: float) -> None:
        """Accept a grant that continues where the last one ended. Raises `ProtocolError`."""
        self._check(grant)
        self._move(SendingEvent.GRANT)
        self._newest_generation = grant.generation
        self._rounds += 1
        self._next_token = grant.end_token
        self._open[grant.generation] = _OpenGrant(grant, now + grant.valid_s, set())
        if self.total_tokens is not None:
            self._plan(self._open[grant.generation], self.total_tokens)

    def encoded(self, total_tokens: int) -> None:
        """The embedding exists; granted chunks may be posted."""
        self._move(SendingEvent.ENCODED)
        self.total_tokens = total_tokens
        for granted in self._open.values():
            self._plan(granted, total_tokens)

    def next_chunk(self, now: float) -> Chunk | None:
        """The next chunk to post, now in flight; `None` when none is granted or we gave up.

        Raises `TransferFailed` if its grant has expired on our clock (R8): the receiver may
        have given the blocks to somebody else's quarantine by now.
        """
        if self.state is not Sending.SENDING or not self._to_post:
            return None
        deadline = self._open[self._to_post[0].generation].deadline
        if now > deadline:
            raise TransferFailed(
                f"grant {self._to_post[0].generation} expired {now - deadline:.1f} s before its "
                "chunk could be posted: encoding took longer than --mm-bootstrap-timeout"
            )
        self._in_flight += 1
        return self._to_post.popleft()

    def deadline_of(self, chunk: Chunk) -> float:
        """Until when, on our clock, the chunk may be posted (R8)."""
        return self._open[chunk.generation].deadline

    def notice(self, chunk: Chunk, checksum: int | None = None) -> ChunkNotice:
        """What the receiver is told once the chunk's bytes are there."""
        if self.total_tokens is None:
            raise ProtocolError("a chunk before the length is known")
        return ChunkNotice(
            v=min(self._open[chunk.generation].grant.v, PROTOCOL_VERSION),
            transfer_id=self.transfer_id,
            generation=chunk.generation,
            chunk=chunk.index,
            first_token=chunk.first_token,
            num_tokens=chunk.num_tokens,
            total_tokens=self.total_tokens,
            checksum=checksum,
        )

    def written(self, chunk: Chunk) -> bool:
        """A chunk's write ended well. True if that was the last chunk of its grant."""
        self._landed()
        self._written_tokens += chunk.num_tokens
        granted = self._open[chunk.generation]
        granted.unwritten.discard(chunk.index)
        if granted.unwritten:
            return False
        del self._open[chunk.generation]
        if self.state is Sending.SENDING and not self._open:
            done = self.total_tokens is not None and self._next_token >= self.total_tokens
            self._move(SendingEvent.FINISH if done else SendingEvent.EXHAUST)
        return True

    def write_failed(self) -> None:
        """A chunk's write ended badly; nothing of it is in flight any more."""
        self._landed()

    def close(self) -> None:
        """Post nothing more. CLOSED at once, or CLOSING until the writes in flight end."""
        if self.state in (Sending.CLOSING, Sending.CLOSED):
            return
        self._to_post.clear()
        self._move(SendingEvent.CLOSE if self._in_flight else SendingEvent.CLOSE_IDLE)

    def progress(self, now: float) -> Progress:
        """How far the transfer is."""
        age_s = now - self._begun_at
        return Progress(self._rounds, self._written_tokens, self.total_tokens, age_s)

    def _landed(self) -> None:
        self._in_flight -= 1
        if self.state is Sending.CLOSING and not self._in_flight:
            self._move(SendingEvent.QUIET)

    def _plan(self, granted: _OpenGrant, total_tokens: int) -> None:
        chunks = chunks_of(granted.grant, total_tokens)
        granted.unwritten = {chunk.index for chunk in chunks}
        self._to_post.extend(chunks)

    def _check(self, grant: Grant) -> None:
        if grant.transfer_id != self.transfer_id:
            raise ProtocolError(f"grant for {grant.transfer_id} handed to {self.transfer_id}")
        if grant.generation <= self._newest_generation:
            raise ProtocolError(f"grant generation {grant.generation} is not new")
        if grant.first_token != self._next_token:
            raise ProtocolError(
                f"grant starts at token {grant.first_token}, expected {self._next_token}"
            )
        if self.total_tokens is not None and grant.first_token >= self.total_tokens:
            raise ProtocolError(f"grant starts behind the last of {self.total_tokens} tokens")
        if len(set(grant.blocks)) != len(grant.blocks):
            raise ProtocolError("grant names a block twice")  # NIXL would write both
        if max(grant.blocks) >= self._num_receiver_blocks:
            raise ProtocolError(
                f"grant names block {max(grant.blocks)} of a pool of {self._num_receiver_blocks}"
            )

    def _move(self, event: SendingEvent) -> None:
        self.state = step(SENDING, self.state, event)
