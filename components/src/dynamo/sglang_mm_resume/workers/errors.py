# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One place that turns an error into what the client gets (R14).

Dynamo shows a client only the text of `InvalidArgument` (400); other statuses carry a generic
text. A plain `ValueError` that leaves a handler would become the client's fault, and most errors
of another worker arrive as one: they are told apart by their text here.
"""

import json
import re

from dynamo.llm import HttpError
from dynamo.llm.exceptions import InvalidArgument

from dynamo.sglang_mm_resume.core.errors import (
    RETRYABLE,
    SHUTS_DOWN,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)

_CLIENT_MUST_CHANGE = frozenset({Reason.BAD_REQUEST, Reason.TOO_LONG})
#: What `Reason.NO_VISION` is between workers; no client sees it.
_NO_VISION = 415
_TEXT = re.compile(r"^(\w+): (.*)$", re.DOTALL)


def to_http(error: ResumeError) -> Exception:
    """Our errors as Dynamo's: 400 with its text, 503, or 500."""
    if isinstance(error, Refused) and error.reason is Reason.NO_VISION:
        return HttpError(_NO_VISION, error.message)
    if isinstance(error, Refused) and error.reason in _CLIENT_MUST_CHANGE:
        return InvalidArgument(error.message)
    if isinstance(error, Refused) and error.reason in RETRYABLE:
        return HttpError(503, error.message)
    if isinstance(error, TransferFailed):
        return HttpError(503, str(error))
    return RuntimeError(str(error))


def relayed(error: Exception) -> Exception:
    """An error of a downstream stream as the error that the client is to see."""
    if isinstance(error, InvalidArgument | HttpError):
        return error
    match = _TEXT.match(str(error))
    kind, text = match.groups() if match else ("", str(error))
    status = _status_in(text)
    if status is not None:
        return status
    if kind == "DeadlineExceeded":
        return TimeoutError(text)
    if kind == "Unavailable":
        return HttpError(503, text)
    if kind == "InvalidRequest":
        return ValueError(text)
    return RuntimeError(str(error))


def is_unavailable(error: Exception) -> bool:
    """Whether an error of a downstream stream says that its worker cannot serve now (503)."""
    downstream = relayed(error)
    return isinstance(downstream, HttpError) and downstream.code == 503


def is_draining(error: Exception) -> bool:
    """Whether an error of a downstream stream says that its worker shuts down."""
    downstream = relayed(error)
    return (
        isinstance(downstream, HttpError)
        and downstream.code == 503
        and downstream.message == SHUTS_DOWN
    )


def is_without_vision(error: Exception) -> bool:
    """Whether an error of a downstream stream says that its engine cannot encode pictures."""
    downstream = relayed(error)
    return isinstance(downstream, HttpError) and downstream.code == _NO_VISION


def _status_in(text: str) -> HttpError | None:
    """An `HttpError` of a downstream worker arrives as JSON text."""
    try:
        fields = json.loads(text)
        return HttpError(int(fields["code"]), str(fields.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return None
