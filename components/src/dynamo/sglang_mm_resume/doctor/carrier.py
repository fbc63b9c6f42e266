# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which of UCX's transports carried bytes from one process to another.

NIXL does not say. Seen from outside, though, the possible ones exclude each other: what goes over
tcp was acknowledged to the writer's own sockets; what RDMA sends is counted by its ports; and on
one machine, what used neither was copied by the kernel (CMA) or from GPU to GPU (cuda_ipc). UCX's
other transports through shared memory cannot report that a peer has died, which NIXL asks of all.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import Final

#: What has moved at least this share of the bytes has moved them; the rest is control messages.
_SHARE: Final = 0.5


class Carrier(StrEnum):
    """By the names that UCX and its users have for them."""

    CMA = "CMA"
    CUDA_IPC = "cuda_ipc"
    RDMA = "RDMA"
    TCP = "tcp"
    UNKNOWN = "unknown"


def carrier(
    moved: int,
    tcp_sent: int | None,
    rdma_sent: int | None,
    one_machine: bool,
    memories: Collection[str],
) -> Carrier:
    """Who carried `moved` bytes. `tcp_sent`, `rdma_sent`: bytes that the writer's sockets, and the
    ports of its machine, have sent meanwhile; None: not known. `memories`: NIXL's names of where
    the bytes came from and went to (`DRAM`, `VRAM`).
    """
    if not moved or tcp_sent is None:
        return Carrier.UNKNOWN
    if tcp_sent >= _SHARE * moved:
        return Carrier.TCP
    if not one_machine or (rdma_sent is not None and rdma_sent >= _SHARE * moved):
        return Carrier.RDMA
    if set(memories) == {"DRAM"}:
        return Carrier.CMA
    return Carrier.CUDA_IPC if set(memories) == {"VRAM"} else Carrier.UNKNOWN


def difference(after: int | None, before: int | None) -> int | None:
    """How far a counter has moved; None where it is not known or has been set back."""
    if after is None or before is None or after < before:
        return None
    return after - before


def bandwidth(num_bytes: int, seconds: float) -> str:
    """In GB/s, as in NIXL's and UCX's own figures (10^9 bytes)."""
    return f"{num_bytes / seconds / 1e9:.2g} GB/s" if seconds > 0 else "- GB/s"
