# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part. Importing this loads none of them: each process imports only its own."""

from dataclasses import dataclass, field
from typing import Final

from benchmarks.workload import PoolShape


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to hand an embedding over: `module:class` of its two sides."""

    name: str
    writer: str
    receiver: str
    #: Memory that must be available before its processes start.
    needs_gib: float = 1.0
    shape: PoolShape = field(default_factory=PoolShape)
    #: Not where others notice: who does not renew its lease is taken for dead.
    may_be_stopped: bool = True


_HERE: Final = "benchmarks.contenders"

OURS: Final = Contender("ours", f"{_HERE}.ours:OurWriter", f"{_HERE}.ours:OurReceiver")
SIZE_FIRST: Final = Contender(
    "size-first", OURS.writer, OURS.receiver, shape=PoolShape(size_first=True)
)
CACHED: Final = Contender("cached", OURS.writer, OURS.receiver, shape=PoolShape(cached=True))
TRACED: Final = Contender("ours", f"{_HERE}.traced:TracedWriter", f"{_HERE}.traced:TracedReceiver")
DEPLOYED: Final = Contender(
    "deployed",
    f"{_HERE}.deployed:DeployedWriter",
    f"{_HERE}.deployed:DeployedReceiver",
    needs_gib=4.0,
    may_be_stopped=False,
)
LOCAL: Final = Contender(
    "local", f"{_HERE}.upstream:LocalWriter", f"{_HERE}.upstream:LocalReceiver"
)
NIXL_WRITE: Final = Contender(
    "nixl-write",
    f"{_HERE}.upstream:NixlWriteWriter",
    f"{_HERE}.upstream:NixlWriteReceiver",
    needs_gib=10.0,
)
NIXL_READ: Final = Contender(
    "nixl-read", f"{_HERE}.upstream:NixlReadWriter", f"{_HERE}.upstream:NixlReadReceiver"
)
TO_SCHEDULER: Final = Contender(
    "zmq_to_scheduler",
    f"{_HERE}.sglang:ToSchedulerWriter",
    f"{_HERE}.sglang:ToSchedulerReceiver",
    needs_gib=2.0,
)
TO_TOKENIZER: Final = Contender(
    "zmq_to_tokenizer",
    f"{_HERE}.sglang:ToTokenizerWriter",
    f"{_HERE}.sglang:ToTokenizerReceiver",
    needs_gib=2.0,
)
BARE: Final = Contender("bare WRITE", f"{_HERE}.floor:BareWriter", f"{_HERE}.floor:BareReceiver")
MEMCPY: Final = Contender("memcpy", f"{_HERE}.floor:CopyWriter", "benchmarks.sides:Receiver")

DYNAMO: Final = (LOCAL, NIXL_WRITE, NIXL_READ)
SGLANG: Final = (TO_SCHEDULER, TO_TOKENIZER)
ALL: Final = (OURS, SIZE_FIRST, CACHED, *DYNAMO, *SGLANG, BARE, MEMCPY)
