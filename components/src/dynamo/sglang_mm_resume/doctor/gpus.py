# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What torch knows of this machine's GPUs.

Run as a program, it prints that as one line of JSON: importing torch takes seconds, and asking a
GPU whose driver hangs never returns, so another process does it, which can be given up.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from dynamo.sglang_mm_resume.video_library import can_decode_videos

if TYPE_CHECKING:
    import torch

#: Seconds for importing torch and asking every GPU: torch alone takes ten from a cold disk.
LIMIT_S: Final = 60.0


class Gpu(BaseModel):
    """One device that torch can use."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_mib: int


class PoolFacts(BaseModel):
    """Of two small pools, one on the first GPU and one in host memory.

    `legacy_ipc`: whether other processes may map the first. `pin_error`: CUDA's error when the
    second is pinned, 0 if it may be. `error`: why nothing is known; both are None then.
    """

    model_config = ConfigDict(frozen=True)

    legacy_ipc: bool | None = None
    pin_error: int | None = None
    error: str = ""


class TorchFacts(BaseModel):
    """`cuda`: the CUDA release that torch was built for; None for a build without it.

    `videos`: whether compressed videos can be decoded, which is by torch's library too.
    `pool`: what a worker's pools may do; None without a GPU.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    cuda: str | None
    gpus: list[Gpu]
    videos: bool
    pool: PoolFacts | None = None


class TorchUnusable(Exception):
    """torch could not be imported, or did not answer; the text says which."""


def torch_facts(limit_s: float = LIMIT_S) -> TorchFacts:
    """Ask torch in a process of its own. Raises `TorchUnusable`."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", __name__],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise TorchUnusable(f"torch did not say within {limit_s:g} s which GPUs it sees") from None
    last = (answer.stdout.splitlines() or [""])[-1]
    try:
        return TorchFacts.model_validate_json(last)
    except ValidationError:
        complaint = (answer.stderr.splitlines() or ["no output"])[-1]
        raise TorchUnusable(f"torch cannot be used: {complaint:.300}") from None


def device_files(folder: Path = Path("/dev")) -> list[str]:
    """The files of NVIDIA devices that are visible here."""
    return sorted(str(path) for path in folder.glob("nvidia[0-9]*"))


def _ask_torch() -> dict[str, Any]:
    import torch

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append({"name": properties.name, "memory_mib": properties.total_memory // 2**20})
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "videos": can_decode_videos(),
        "pool": _try_pools().model_dump() if gpus else None,
    }


def _try_pools() -> PoolFacts:
    """With pools as workers make them, on the first GPU: it is the driver, and the settings of
    torch's allocator, that decide.
    """
    import torch

    from dynamo.sglang_mm_resume.core.layout import Layout
    from dynamo.sglang_mm_resume.transport import cuda
    from dynamo.sglang_mm_resume.transport.memory import PoolMemory

    layout = Layout(model="doctor", width=3584, dtype="bfloat16", block_size=128)
    try:
        on_gpu = PoolMemory(layout, 4, torch.device("cuda", 0)).tensor
        on_host = PoolMemory(layout, 4, torch.device("cpu")).tensor
        capable = cuda.is_ipc_capable(on_gpu)
        return PoolFacts(legacy_ipc=capable, pin_error=pin_error(on_host))
    except (RuntimeError, OSError) as error:
        return PoolFacts(error=f"{type(error).__name__}: {error!s:.300}")


def pin_error(tensor: "torch.Tensor") -> int:
    """CUDA's error when this host memory is pinned; 0: it may be, and is not pinned by this."""
    import torch

    if tensor.is_pinned():
        return 0
    cuda = torch.cuda.cudart()
    error = int(cuda.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    if not error:
        cuda.cudaHostUnregister(tensor.data_ptr())
    return error


if __name__ == "__main__":
    print(json.dumps(_ask_torch()))
