# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Are the pools of a deployment where their peers can write at full speed?

As far as workers say it of themselves; what writes really go over is measured in pairs.py.
"""

import itertools
from collections import Counter
from typing import Final

from dynamo.sglang_mm_resume.config import POOL_DEVICE
from dynamo.sglang_mm_resume.doctor.graph import WITH_POOL, Graph, Worker
from dynamo.sglang_mm_resume.doctor.report import Result, ok, skip, warn
from dynamo.sglang_mm_resume.workers.status import Process

HOST_POOLS: Final = f"start both with {POOL_DEVICE.flag} cpu ({POOL_DEVICE.env})"


def checks(graph: Graph) -> list[Result]:
    """All of them; none where no worker with a pool has answered."""
    if not graph.of(*WITH_POOL):
        return []
    return [reach(graph), pinned(graph)]


def reach(graph: Graph) -> Result:
    """Is there a way into each pool in GPU memory that leads past the host?"""
    name = "pool memory"
    kinds = Counter(d.memory or "unknown" for d in graph.descriptions(*WITH_POOL))
    text = ", ".join(f"{kind} on {count}" for kind, count in sorted(kinds.items()))
    pairs = itertools.product(graph.of("encode"), graph.of("prefill"))
    slow = [pair for pair in pairs if in_gpu_memory(*pair) and not direct(*pair)]
    if not slow:
        return ok(name, text, **kinds)
    encode, prefill = slow[0]
    more = f" and {len(slow) - 1} more pairs" if len(slow) > 1 else ""
    return warn(
        name,
        f"{text}; {encode.label} and {prefill.label}{more} have neither RDMA nor one PID namespace "
        "on one machine: every write into GPU memory is copied through the host",
        f"{HOST_POOLS}; or let them share a PID namespace (hostPID, or one pod with "
        "shareProcessNamespace); or give both RDMA devices",
        **kinds,
    )


def pinned(graph: Graph) -> Result:
    """Do GPUs copy at full speed into pools in host memory?"""
    name = "pinned pools"
    said = [w for w in graph.of(*WITH_POOL) if w.description and w.description.pinned is not None]
    if not said:
        return skip(name, "no pool in host memory takes rows from a GPU")
    failed = [w.label for w in said if w.description and not w.description.pinned]
    if not failed:
        return ok(name, f"{len(said)} in host memory, pinned for their GPU")
    return warn(
        name,
        f"{', '.join(failed)}: host memory could not be pinned, and GPUs copy into it slowly",
        "look for 'cannot be pinned for the GPU' in the log; lower --embedding-cache-buffer-size",
    )


def in_gpu_memory(*workers: Worker) -> bool:
    """Is one of their pools?"""
    return any(w.description is not None and w.description.memory == "VRAM" for w in workers)


def direct(encode: Worker, prefill: Worker) -> bool:
    """RDMA on both sides; or `cuda_ipc`: both in GPU memory, in one PID namespace of a machine."""
    if encode.description is None or prefill.description is None:
        return False
    one, other = encode.description, prefill.description
    if one.process.rdma_files and other.process.rdma_files:
        return True
    return one.memory == other.memory and _place(one.process) == _place(other.process)


def _place(process: Process) -> tuple[str, str]:
    return process.boot_id, process.pid_namespace
