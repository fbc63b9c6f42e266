# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which GPUs are a worker's, and where its pool goes.

GPUs are indices of this process, as SGLang counts them: from `--base-gpu-id` on, among those that
`CUDA_VISIBLE_DEVICES` leaves.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import POOL_DEVICE


def gpus_of_engine(server_args: Any) -> range:
    """Those of an engine's processes on this machine; none on a CPU. `server_args`: resolved."""
    ranks = server_args.tp_size * server_args.pp_size
    if not server_args.enable_dp_attention:  # else they are among those
        ranks *= server_args.dp_size
    return _gpus(server_args, max(1, ranks // server_args.nnodes), server_args.gpu_id_step)


def gpus_of_towers(server_args: Any) -> range:
    """Those of all ranks of all vision towers, one after the other; none on a CPU."""
    return _gpus(server_args, server_args.tp_size * server_args.dp_size, 1)


def _gpus(server_args: Any, ranks: int, step: int) -> range:
    if server_args.device != "cuda" or not torch.cuda.is_available():
        return range(0)
    first = server_args.base_gpu_id
    return range(first, first + ranks * step, step)


def pool_device(name: str, gpus: Sequence[int], has_rdma: bool) -> torch.device:
    """The device that `--mm-resume-pool-device` names. `gpus`: the worker's own.

    Writes into the memory of a GPU need RDMA, or `cuda_ipc`, and the latter a PID namespace shared
    with the peer, of which a worker knows nothing when it starts. Without either, UCX copies every
    piece through the host, at a tenth of the speed of host memory over TCP, and says nothing: so
    `auto` takes a GPU where there is RDMA.

    Raises `BadArgument` if the worker has no such GPU.
    """
    if name == "auto":
        return torch.device("cuda", gpus[0]) if gpus and has_rdma else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if not gpus:
        raise BadArgument(
            f"{POOL_DEVICE.label}: {name}, but this worker has no GPU: take cpu, or auto"
        )
    if device.index is None:
        return torch.device("cuda", gpus[0])
    if device.index not in gpus:
        own = ", ".join(f"cuda:{index}" for index in gpus)
        raise BadArgument(
            f"{POOL_DEVICE.label}: {name} is no GPU of this worker (--base-gpu-id): take "
            f"{own}, or auto"
        )
    return device


def threads_on(device: str, gpu_id: int, num_threads: int, name: str) -> ThreadPoolExecutor:
    """Threads whose current device is that of a tower: CUDA has one per thread, the first GPU of
    the process unless told otherwise, and launches a tower's own kernels there.
    """
    use = partial(_use, device, gpu_id)
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=use)


def _use(device: str, gpu_id: int) -> None:
    torch.get_device_module(device).set_device(gpu_id)
