# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The three state tables of a transfer, nothing else. A missing row is an `IllegalEvent`.

One transfer moves one media item. It has one row in each table at a time: the processor runs the
handshake, the encode worker sends, the prefill worker receives.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar

from dynamo.sglang_mm_resume.core.errors import IllegalEvent


class Receiving(Enum):
    """A transfer as the prefill worker sees it."""

    WAITING = "waiting"  # queued for blocks; holds none (R4)
    GRANTED = "granted"  # its blocks are set aside, but the asker, and so the writer, knows of none
    RECEIVING = "receiving"  # holds at least one grant that a writer may use
    RESUMING = "resuming"  # asked for more, but its own blocks are not all back yet
    DRAINED = "drained"  # holds no block, tokens remain, nobody asked yet
    COMPLETE = "complete"  # every token is assembled; waits for the engine
    IN_ENGINE = "in_engine"  # the engine reads it, until its request ends
    QUARANTINED = "quarantined"  # given up while the writer may still write (R6)
    CLOSED = "closed"  # nothing is held


class ReceivingEvent(Enum):
    GRANT = "grant"
    ANSWER = "answer"  # the asker has its grant, and may pass it on to the writer
    ASKER_GONE = "asker_gone"  # whoever waited for a grant is gone, and will pass none on
    RESUME = "resume"
    DRAIN = "drain"  # the last open grant is copied out and given back
    FINISH = "finish"  # the last token is copied out, too
    TAKE = "take"  # a request hands the embedding to the engine
    GIVE_UP = "give_up"  # over, and no writer can touch our blocks
    QUARANTINE = "quarantine"  # failed or aborted, and a writer may
    SETTLE = "settle"  # that writer is closed or dead


RECEIVING: Final[Mapping[tuple[Receiving, ReceivingEvent], Receiving]] = {
    (Receiving.WAITING, ReceivingEvent.GRANT): Receiving.GRANTED,
    (Receiving.WAITING, ReceivingEvent.ASKER_GONE): Receiving.CLOSED,
    (Receiving.WAITING, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.GRANTED, ReceivingEvent.ANSWER): Receiving.RECEIVING,
    (Receiving.GRANTED, ReceivingEvent.ASKER_GONE): Receiving.CLOSED,
    (Receiving.GRANTED, ReceivingEvent.QUARANTINE): Receiving.QUARANTINED,
    (Receiving.GRANTED, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.RECEIVING, ReceivingEvent.GRANT): Receiving.RECEIVING,
    (Receiving.RECEIVING, ReceivingEvent.RESUME): Receiving.RESUMING,
    (Receiving.RECEIVING, ReceivingEvent.DRAIN): Receiving.DRAINED,
    (Receiving.RECEIVING, ReceivingEvent.FINISH): Receiving.COMPLETE,
    (Receiving.RECEIVING, ReceivingEvent.QUARANTINE): Receiving.QUARANTINED,
    (Receiving.RECEIVING, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.RESUMING, ReceivingEvent.DRAIN): Receiving.WAITING,
    (Receiving.RESUMING, ReceivingEvent.ASKER_GONE): Receiving.QUARANTINED,
    (Receiving.RESUMING, ReceivingEvent.QUARANTINE): Receiving.QUARANTINED,
    (Receiving.RESUMING, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.DRAINED, ReceivingEvent.RESUME): Receiving.WAITING,
    (Receiving.DRAINED, ReceivingEvent.GRANT): Receiving.RECEIVING,
    (Receiving.DRAINED, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.COMPLETE, ReceivingEvent.TAKE): Receiving.IN_ENGINE,
    (Receiving.COMPLETE, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.IN_ENGINE, ReceivingEvent.GIVE_UP): Receiving.CLOSED,
    (Receiving.QUARANTINED, ReceivingEvent.SETTLE): Receiving.CLOSED,
}


class Sending(Enum):
    """A transfer as the encode worker sees it."""

    ENCODING = "encoding"  # loading, preprocessing, in the vision tower, or queued for it
    SENDING = "sending"  # the embedding exists, granted chunks are not all written
    STARVED = "starved"  # everything granted is written, tokens remain
    DONE = "done"  # every token is written
    CLOSING = "closing"  # posts no more; a write is still in flight
    CLOSED = "closed"  # posts no more; nothing is in flight


class SendingEvent(Enum):
    GRANT = "grant"
    ENCODED = "encoded"
    EXHAUST = "exhaust"  # the last granted chunk is written
    FINISH = "finish"  # so is the last token
    CLOSE = "close"  # give up while a write is in flight
    CLOSE_IDLE = "close_idle"  # give up while none is
    QUIET = "quiet"  # the last write in flight ended


SENDING: Final[Mapping[tuple[Sending, SendingEvent], Sending]] = {
    (Sending.ENCODING, SendingEvent.GRANT): Sending.ENCODING,
    (Sending.ENCODING, SendingEvent.ENCODED): Sending.SENDING,
    (Sending.ENCODING, SendingEvent.CLOSE_IDLE): Sending.CLOSED,
    (Sending.SENDING, SendingEvent.GRANT): Sending.SENDING,
    (Sending.SENDING, SendingEvent.EXHAUST): Sending.STARVED,
    (Sending.SENDING, SendingEvent.FINISH): Sending.DONE,
    (Sending.SENDING, SendingEvent.CLOSE): Sending.CLOSING,
    (Sending.SENDING, SendingEvent.CLOSE_IDLE): Sending.CLOSED,
    (Sending.STARVED, SendingEvent.GRANT): Sending.SENDING,
    (Sending.STARVED, SendingEvent.CLOSE_IDLE): Sending.CLOSED,
    (Sending.DONE, SendingEvent.CLOSE_IDLE): Sending.CLOSED,
    (Sending.CLOSING, SendingEvent.QUIET): Sending.CLOSED,
}


class Shaking(Enum):
    """A transfer as the processor sees it."""

    RESERVING = "reserving"  # the default grant is asked for
    ENCODING = "encoding"  # granted; the length is unknown
    SENDING = "sending"  # the length is known, and no more is asked for
    TRYING = "trying"  # more blocks are asked for, at once or not at all
    RESUMING = "resuming"  # more blocks are asked for, as soon as they can be had
    DONE = "done"  # every token is sent


class ShakingEvent(Enum):
    GRANT = "grant"
    SIZE = "size"
    TRY = "try"
    NO_BLOCKS = "no_blocks"
    FINISH = "finish"


SHAKING: Final[Mapping[tuple[Shaking, ShakingEvent], Shaking]] = {
    (Shaking.RESERVING, ShakingEvent.GRANT): Shaking.ENCODING,
    (Shaking.ENCODING, ShakingEvent.SIZE): Shaking.SENDING,
    (Shaking.SENDING, ShakingEvent.TRY): Shaking.TRYING,
    (Shaking.SENDING, ShakingEvent.FINISH): Shaking.DONE,
    (Shaking.TRYING, ShakingEvent.GRANT): Shaking.SENDING,
    (Shaking.TRYING, ShakingEvent.NO_BLOCKS): Shaking.RESUMING,
    (Shaking.RESUMING, ShakingEvent.GRANT): Shaking.SENDING,
}

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)


def step(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """The state after `event`. Raises `IllegalEvent` where the table has no row."""
    try:
        return table[state, event]
    except KeyError:
        raise IllegalEvent(f"{event.name} while {state.name}") from None
