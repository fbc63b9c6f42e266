# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What torch knows of this machine's GPUs.

Run as a program, it prints that as one line of JSON: importing torch takes seconds, and asking a
GPU whose driver hangs never returns, so another process does it, which can be given up.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

#: Seconds for importing torch and asking every GPU: torch alone takes ten from a cold disk.
LIMIT_S: Final = 60.0
_TRIED_BYTES: Final = 2**20


class Gpu(BaseModel):
    """One device that torch can use, and what CUDA's driver says of it; None: nothing."""

    model_config = ConfigDict(frozen=True)

    name: str
    memory_mib: int
    ipc_capable: bool | None = None
    pins_host_memory: bool | None = None


class TorchFacts(BaseModel):
    """`cuda`: the CUDA release that torch was built for; None for a build without it."""

    model_config = ConfigDict(frozen=True)

    version: str
    cuda: str | None
    gpus: list[Gpu]


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
            gpus.append(
                {
                    "name": properties.name,
                    "memory_mib": properties.total_memory // 2**20,
                    **_driver_facts(torch.device("cuda", index)),
                }
            )
    return {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


def _driver_facts(device: Any) -> dict[str, bool]:
    """By trying it, with a little memory of either kind, as a pool would have it."""
    from dynamo.sglang_mm_resume.transport import cuda
    from dynamo.sglang_mm_resume.transport.host_memory import populated

    found = {}
    with suppress(RuntimeError, OSError):  # a GPU that is full, or in use by somebody else
        found["ipc_capable"] = cuda.is_ipc_capable(cuda.allocate(_TRIED_BYTES, device))
    with suppress(RuntimeError, OSError):
        pinning, memory = cuda.Pinning(device), populated(_TRIED_BYTES)
        found["pins_host_memory"] = pinning.pin(memory.data_ptr(), _TRIED_BYTES)
        pinning.unpin(memory.data_ptr())
    return found


if __name__ == "__main__":
    print(json.dumps(_ask_torch()))
