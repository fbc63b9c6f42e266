# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The processor's side of one transfer: when to ask for more blocks, and how.

Every method takes what just happened and returns what to do next. While tokens have no grant yet,
more room is *tried* for, which never waits. Where there is none, the transfer is *resumed*: as soon
as its own blocks are home it queues, and not before (R4). That is asked for at once, while the
writer fills what it has, so that the answer is on its way when the blocks are.
"""

from dataclasses import dataclass

from dynamo.sglang_mm_resume.core.errors import ProtocolError, Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Grant, Sent, Sized
from dynamo.sglang_mm_resume.core.transitions import SHAKING, Shaking, ShakingEvent, step


@dataclass(frozen=True, slots=True)
class TryGrant:
    """Ask for the rest without waiting, then say `granted` or `no_blocks`."""

    sent_tokens: int


@dataclass(frozen=True, slots=True)
class WaitForGrant:
    """Ask for the rest after `sent_tokens`, those of all grants so far, and wait for it."""

    sent_tokens: int


@dataclass(frozen=True, slots=True)
class ForwardGrant:
    """Hand a grant to the writer."""

    grant: Grant


Action = TryGrant | WaitForGrant | ForwardGrant


class Handshake:
    """One transfer, from the default grant to its last token."""

    def __init__(self, transfer_id: str) -> None:
        self.transfer_id = transfer_id
        self.state = Shaking.RESERVING
        self.total_tokens: int | None = None
        self.sent_tokens = 0
        self.rounds = 0  # grants used so far
        self.num_bytes = 0
        self._granted_tokens = 0
        self._outstanding: set[int] = set()  # generations the writer has not filled yet
        self._resumable = True

    def granted(self, grant: Grant) -> list[Action]:
        """A grant arrived: the first one goes out with `Encode`, later ones are forwarded."""
        first = self.state is Shaking.RESERVING
        if grant.first_token != self._granted_tokens:
            raise ProtocolError(
                f"grant starts at token {grant.first_token}, expected {self._granted_tokens}"
            )
        self._move(ShakingEvent.GRANT)
        self.rounds += 1
        self._granted_tokens = grant.end_token
        self._outstanding.add(grant.generation)
        self._resumable = grant.resumable
        return [] if first else [ForwardGrant(grant), *self._ahead()]

    def sized(self, message: Sized) -> list[Action]:
        """The length is known, the tower is still running: try for the rest now."""
        self._move(ShakingEvent.SIZE)
        self.total_tokens = message.total_tokens
        if self._missing and not self._resumable:
            raise Refused(
                Reason.TOO_LONG,
                f"the media item needs {message.total_tokens} tokens, but a slot of the "
                f"index-based buffer holds {self._granted_tokens}: send a smaller one, or serve "
                "with SGLANG_USE_BLOCK_ALLOCATOR=true",
            )
        return self._ahead()

    def sent(self, message: Sent) -> list[Action]:
        """The writer has filled a grant."""
        if message.generation not in self._outstanding or self.total_tokens is None:
            raise ProtocolError(f"unexpected report about grant {message.generation}")
        self._outstanding.discard(message.generation)
        self.sent_tokens = max(self.sent_tokens, message.sent_tokens)
        self.num_bytes += message.num_bytes
        if not self._outstanding and not self._missing:
            self._move(ShakingEvent.FINISH)
            return []
        return self._ahead()

    def no_blocks(self) -> list[Action]:
        """A try brought nothing."""
        self._move(ShakingEvent.NO_BLOCKS)
        return [WaitForGrant(self._granted_tokens)]

    @property
    def _missing(self) -> int:
        return max(0, (self.total_tokens or 0) - self._granted_tokens)

    def _ahead(self) -> list[Action]:
        # One grant in hand beside the one being filled is enough to keep the writer busy.
        asking = self.state is not Shaking.SENDING
        if asking or not self._missing or len(self._outstanding) > 1:
            return []
        self._move(ShakingEvent.TRY)
        return [TryGrant(self.sent_tokens)]

    def _move(self, event: ShakingEvent) -> None:
        self.state = step(SHAKING, self.state, event)
