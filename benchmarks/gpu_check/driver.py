# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Is the memory of a pool what UCX and the GPU need, whatever torch's allocator is set to?"""

import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.gpu_check.cases import HOST, LAYOUT, Figure, Skipped, require
from dynamo.sglang_mm_resume.transport import cuda
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

NUM_BLOCKS = 128
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
LIMIT_S = 120.0


def section(device: torch.device) -> Iterator[Figure]:
    if device.type == "cpu":
        raise Skipped("there is no driver to ask")
    free = torch.cuda.mem_get_info(device)[0]
    pool = PoolMemory(LAYOUT, NUM_BLOCKS, device)
    require(pool.device == device, f"a pool for {device} is on {pool.device}")
    taken = free - torch.cuda.mem_get_info(device)[0]
    yield Figure("pool on the GPU", f"{pool.num_bytes / 2**20:.0f} MiB, {taken / 2**20:.0f} taken")
    require(cuda.is_ipc_capable(pool.tensor), "the pool has no legacy CUDA IPC")
    yield Figure("legacy CUDA IPC", "yes")
    del pool
    left = free - torch.cuda.mem_get_info(device)[0]
    require(left < 64 * 2**20, f"{left / 2**20:.0f} MiB stay taken after the pool")
    for name, code in (("the pool", _POOL), ("torch's own memory (no fault if not)", _TORCH)):
        answer = _ask(code, device)
        yield Figure(f"{name}, expandable segments", answer)
        if code is _POOL:
            require(answer == "True", f"with {EXPANDABLE} the pool has no legacy CUDA IPC")
    host = PoolMemory(LAYOUT, NUM_BLOCKS, HOST, rows_on=device)
    require(host.pinned is True and host.tensor.is_pinned(), "a host pool is not pinned")
    yield Figure("host pool", "pinned")
    for index in range(torch.cuda.device_count()):
        order = torch.cuda.get_device_properties(index)
        yield Figure(f"cuda:{index}", f"{order.name}, {order.total_memory / 2**30:.0f} GiB")


_POOL = """
import sys, torch
from benchmarks.gpu_check.cases import LAYOUT
from dynamo.sglang_mm_resume.transport import cuda
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
print(cuda.is_ipc_capable(PoolMemory(LAYOUT, 8, torch.device(sys.argv[1])).tensor))
"""
_TORCH = """
import sys, torch
from dynamo.sglang_mm_resume.transport import cuda
print(cuda.is_ipc_capable(torch.empty(2**26, dtype=torch.uint8, device=sys.argv[1])))
"""


def _ask(code: str, device: torch.device) -> str:
    """What a process says whose torch has expandable segments."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(device)],
        env=os.environ | EXPANDABLE,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return (done.stdout.strip() or done.stderr.strip()[-200:]).splitlines()[-1]
