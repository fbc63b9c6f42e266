# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the machine, or the container, allows: limits that turn up as slow or failing transfers.

Each check takes the facts that it judges; `host` reads them.
"""

import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dynamo.sglang_mm_resume.config import POOL_DEVICE
from dynamo.sglang_mm_resume.doctor.gpus import Gpu
from dynamo.sglang_mm_resume.doctor.report import Result, fail, ok, skip, warn
from dynamo.sglang_mm_resume.workers.status import rdma_devices, rdma_files

#: Fewer, and the thread that polls NIXL, the event loop and the engine take each other's time.
MIN_CORES: Final = 2.0
#: Docker gives 64 MiB unless told otherwise. SGLang's processes pass tensors through this memory.
MIN_SHARED_BYTES: Final = 2**30
#: A worker has a socket per peer and per request under way, and the engine's own files.
MIN_OPEN_FILES: Final = 4096
#: Bit of CAP_SYS_PTRACE in the capability sets of linux/capability.h.
_CAP_SYS_PTRACE: Final = 1 << 19


def host(gpus: Sequence[Gpu] = ()) -> list[Result]:
    """All checks, on this machine as this process sees it, with the GPUs that torch sees."""
    devices = rdma_devices()
    return [
        cores(usable_cores()),
        shared_memory(_shared_bytes()),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        ptrace(_read("/proc/sys/kernel/yama/ptrace_scope"), _may_ptrace()),
        rdma(devices, rdma_files()),
        memlock(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], devices),
        cuda_ipc(gpus),
        pinned(gpus),
    ]


def cores(number: float) -> Result:
    """`number`: cores that this process may use, by affinity and by its container's quota."""
    if number >= MIN_CORES:
        return ok("cores", f"{number:g}", cores=number)
    return warn(
        "cores",
        f"{number:g}, and a worker needs {MIN_CORES:g} or more",
        "raise the container's CPU limit, or the affinity of the process",
        cores=number,
    )


def shared_memory(num_bytes: int | None) -> Result:
    """`num_bytes`: size of /dev/shm; None where there is none."""
    action = (
        "mount one: an emptyDir with medium: Memory at /dev/shm (Kubernetes), --shm-size (Docker)"
    )
    if num_bytes is None:
        return fail("shared memory", "there is no /dev/shm", action)
    text = f"/dev/shm has {_size(num_bytes)}"
    if num_bytes < MIN_SHARED_BYTES:
        wanted = _size(MIN_SHARED_BYTES)
        return warn("shared memory", f"{text}, less than {wanted}", action, bytes=num_bytes)
    return ok("shared memory", text, bytes=num_bytes)


def open_files(limit: int) -> Result:
    """`limit`: the soft one (`ulimit -n`), or RLIM_INFINITY."""
    if limit == resource.RLIM_INFINITY or limit >= MIN_OPEN_FILES:
        return ok("open files", _limit(limit), limit=limit)
    return warn(
        "open files",
        f"{limit}, less than {MIN_OPEN_FILES}",
        "ulimit -n 65536 before the worker starts, or LimitNOFILE= of its unit",
        limit=limit,
    )


def ptrace(scope: str | None, capable: bool) -> Result:
    """May one process write into another of the same user? CMA, UCX's way between processes of a
    machine, asks that of Linux. `scope`: Yama's setting, None where Yama is not there.

    UCX permits its own processes to each other where the scope is 1.
    """
    figures = {"ptrace_scope": scope, "cap_sys_ptrace": capable}
    if scope in (None, "0", "1") or (scope == "2" and capable):
        return ok("ptrace", f"CMA is allowed (Yama's scope: {scope or 'none'})", **figures)
    action = "sysctl kernel.yama.ptrace_scope=1 on the machine" + (
        ", or give the containers CAP_SYS_PTRACE" if scope == "2" else ""
    )
    text = f"kernel.yama.ptrace_scope is {scope}: CMA is refused, host memory travels over tcp"
    return warn("ptrace", text, action, **figures)


def rdma(devices: list[str], verbs: list[str]) -> Result:
    """`devices`: those that the kernel lists; `verbs`: files by which programs reach them."""
    figures = {"devices": devices, "verbs": verbs}
    if not devices:
        return skip("RDMA", "no device: between machines, embeddings travel over tcp", **figures)
    if not verbs:
        return warn(
            "RDMA",
            f"{', '.join(devices)} listed, but /dev/infiniband has no uverbs file here",
            "request the device for the pod (rdma/ib or what your device plug-in names), or run "
            "the container with --device /dev/infiniband",
            **figures,
        )
    return ok("RDMA", ", ".join(devices), **figures)


def memlock(limit: int, devices: list[str]) -> Result:
    """`limit`: bytes that may be locked in memory, as RDMA does with a whole pool."""
    if limit == resource.RLIM_INFINITY:
        return ok("locked memory", "unlimited", limit_bytes=None)
    if not devices:
        text = f"{_size(limit)}; only RDMA needs more"
        return skip("locked memory", text, limit_bytes=limit)
    return fail(
        "locked memory",
        f"{_size(limit)}, and RDMA locks all of a pool",
        "ulimit -l unlimited; in a container IPC_LOCK (Kubernetes) or --ulimit memlock=-1 (Docker)",
        limit_bytes=limit,
    )


def cuda_ipc(gpus: Sequence[Gpu]) -> Result:
    """Can other processes map the memory of the GPUs, as UCX's `cuda_ipc` does?"""
    if not gpus:
        return skip("CUDA IPC", "no GPU")
    without = _indices(gpu.ipc_capable for gpu in gpus)
    if not without:
        return ok("CUDA IPC", f"memory of {len(gpus)} GPUs can be shared between processes")
    return warn(
        "CUDA IPC",
        f"memory of {without} cannot be shared between processes",
        f"{POOL_DEVICE.flag} cpu, unless all peers are reached by RDMA",
    )


def pinned(gpus: Sequence[Gpu]) -> Result:
    """Can host memory be page-locked for the GPUs, as a pool there is?"""
    if not gpus:
        return skip("pinned memory", "no GPU")
    without = _indices(gpu.pins_host_memory for gpu in gpus)
    if not without:
        return ok("pinned memory", "host memory can be pinned for every GPU")
    return warn(
        "pinned memory",
        f"host memory cannot be pinned for {without}: copies into a pool there are slow",
        "look into the kernel's log; containers and virtual machines may limit pinned memory",
    )


def _indices(answers: Iterable[bool | None]) -> str:
    """The GPUs for which the answer is no, or none."""
    return ", ".join(f"cuda:{index}" for index, answer in enumerate(answers) if not answer)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores by affinity, or by the quota of the container (cgroup v2) where that is less."""
    number = float(len(os.sched_getaffinity(0)))
    allowed, _, period = (_read(str(quota)) or "max").partition(" ")
    return number if allowed == "max" else min(number, int(allowed) / int(period))


def _shared_bytes(path: str = "/dev/shm") -> int | None:
    try:
        stats = os.statvfs(path)
    except OSError:
        return None
    return stats.f_frsize * stats.f_blocks


def _may_ptrace() -> bool:
    lines = (_read("/proc/self/status") or "").splitlines()
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) & _CAP_SYS_PTRACE)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _limit(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _size(num_bytes: int) -> str:
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f} MiB"
