# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How large a request may be: at the door, and on its way between processes.

What the door lets in must pass every hop behind it. Both limits are Dynamo's and are read by Dynamo
from the environment; the default of the second one is raised here, in every process of ours.
"""

import os
from collections.abc import MutableMapping
from typing import Final

from dynamo.sglang_mm_resume.args import BadArgument

#: The largest body of a request to the frontend, in MiB, with Dynamo's default.
BODY_ENV: Final = "DYN_HTTP_BODY_LIMIT_MB"
DEFAULT_BODY_MIB: Final = 45
#: The largest message between two processes, in bytes. Dynamo's own default, 32 MiB, is less than
#: a body may have. A limit only: nothing is allocated by it.
MESSAGE_ENV: Final = "DYN_TCP_MAX_MESSAGE_SIZE"
DEFAULT_MESSAGE_BYTES: Final = 2**30
#: Bytes of a message per byte of a body. A `data:` URL travels once. A text travels as token ids of
#: up to five bytes, twice beside an image, and with it as two copies of itself.
MESSAGE_PER_BODY: Final = 12


def raise_message_limit(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the default of the message limit, before Dynamo's runtime reads it."""
    environ.setdefault(MESSAGE_ENV, str(DEFAULT_MESSAGE_BYTES))


def max_body_mib() -> int:
    """The largest request body that Dynamo's server takes, and that passes behind it.

    Raises BadArgument for a value that is no number, and where messages are limited to less.
    """
    body_mib = _whole_number(BODY_ENV, DEFAULT_BODY_MIB, "MiB")
    message_bytes = _whole_number(MESSAGE_ENV, DEFAULT_MESSAGE_BYTES, "bytes")
    needed = MESSAGE_PER_BODY * body_mib * 2**20
    if message_bytes < needed:
        raise BadArgument(
            f"{MESSAGE_ENV}: {message_bytes} bytes are too few for request bodies of {body_mib} "
            f"MiB ({BODY_ENV}): set it to {needed} or more on all workers and the frontend, or "
            "lower the limit of bodies"
        )
    return body_mib


def _whole_number(env: str, default: int, unit: str) -> int:
    text = os.environ.get(env, str(default))
    if not text.isdecimal():
        raise BadArgument(f"{env}: {text!r} is not a whole number of {unit}")
    return int(text)
