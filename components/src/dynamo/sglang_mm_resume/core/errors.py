# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Every error this component raises on purpose.

    ResumeError
    ├── PoolError         a block or a lease was used against its rules: a bug on this side
    ├── IllegalEvent      a state table has no row for what happened: a bug on this side
    ├── ProtocolError     the peer said something that the protocol does not allow
    ├── Refused           a well-formed wish that is turned down, with a reason
    └── TransferFailed    bytes did not arrive, or the transfer was given up

The workers turn these into HTTP answers in one place (workers/errors.py).
"""

from enum import StrEnum
from typing import Final


class ResumeError(Exception):
    """Base class; never raised itself."""


class PoolError(ResumeError):
    """A block or a lease was used against its rules (double release, foreign lease)."""


class IllegalEvent(ResumeError):
    """A transfer met an event that its state does not allow."""


class ProtocolError(ResumeError):
    """A peer's message is malformed, stale, or contradicts what was agreed."""


class Reason(StrEnum):
    """Why a wish is refused. The value travels on the wire and labels a metric."""

    VERSION = "version"  # the peers speak different protocol versions
    LAYOUT = "layout"  # model, width, dtype or block size differ
    OVERLOADED = "overloaded"  # a limit of this worker is reached: try again later
    DRAINING = "draining"  # this worker shuts down: another one will do it
    TIMEOUT = "timeout"  # no block became free in time: try again later
    TOO_LONG = "too_long"  # the embedding can never fit (index-based slots, context length)
    UNKNOWN_TRANSFER = "unknown_transfer"  # no live transfer of that name: it was given up
    DUPLICATE = "duplicate"  # a transfer id was used before, or given up before it began
    BAD_REQUEST = "bad_request"  # the media or the prompt is wrong: the client must change it
    NO_VISION = "no_vision"  # a picture for an engine that has no vision tower
    INTERNAL = "internal"  # a worker failed at its own work: a bug or a lack, seen in its log
    PROTOCOL = "protocol"  # a peer broke the protocol: a bug, not the client's fault
    FAILED = "failed"  # the transfer broke half-way: a fresh one may do better
    CORRUPT = "corrupt"  # rows arrived that were not sent, or are no numbers: likewise


#: The text of `Reason.DRAINING`: between workers that answer in HTTP's terms it is all there is.
SHUTS_DOWN: Final = "this worker shuts down: try again later"

#: Refusals that another worker, or the same one a moment later, might not give. `DUPLICATE`: who
#: tries again has a fresh id.
RETRYABLE = frozenset(
    {
        Reason.OVERLOADED,
        Reason.DRAINING,
        Reason.VERSION,
        Reason.TIMEOUT,
        Reason.FAILED,
        Reason.CORRUPT,
        Reason.UNKNOWN_TRANSFER,
        Reason.DUPLICATE,
    }
)


class Refused(ResumeError):
    """A wish was turned down. `reason` decides the HTTP status, the text says what to change."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class TransferFailed(ResumeError):
    """A transfer ended without its bytes."""
