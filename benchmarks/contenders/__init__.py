# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part. Importing this loads none of them: each process imports only its own."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to hand an embedding over: `module:class` of its two sides."""

    name: str
    writer: str
    receiver: str
    #: Memory that must be available before its processes start.
    needs_gib: float = 2.0


#: Series, as `Writer.hand_off` names them, that ratios are taken of.
FLOOR: Final = "bare WRITE"
UPSTREAM: Final = ("local", "nixl-write", "nixl-read")

_HERE: Final = "benchmarks.contenders"

CONTENDERS: Final = (
    Contender("ours", f"{_HERE}.ours:OurWriter", f"{_HERE}.ours:OurReceiver"),
    Contender("local", f"{_HERE}.upstream:LocalWriter", f"{_HERE}.upstream:LocalReceiver"),
    Contender(
        "nixl-write",
        f"{_HERE}.upstream:NixlWriteWriter",
        f"{_HERE}.upstream:NixlWriteReceiver",
        needs_gib=10.0,
    ),
    Contender(
        "nixl-read", f"{_HERE}.upstream:NixlReadWriter", f"{_HERE}.upstream:NixlReadReceiver"
    ),
    Contender("bare WRITE", f"{_HERE}.floor:BareWriter", f"{_HERE}.floor:BareReceiver"),
    Contender("memcpy", f"{_HERE}.floor:CopyWriter", "benchmarks.pair:Receiver"),
)
