# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Entry point `sglang.srt.platforms`: offers SGLang the platform for machines without accelerator.

SGLang calls `activate` once in each of its processes, before it knows what device it runs on, and
takes the class whose name that returns. With one applicable platform no variable needs to be set;
with several, `SGLANG_PLATFORM=mm_resume_cpu` chooses this one.
"""

import os

_PLATFORM = "dynamo.sglang_mm_resume.sglang_cpu.torch_native:TorchNativeCpuPlatform"


def activate() -> str | None:
    """The name of our platform class; None where another platform is the right one."""
    # SGLang's own CPU engine is asked for in this way; an installed plug-in would displace it.
    wants_builtin = os.environ.get("SGLANG_USE_CPU_ENGINE") == "1"
    return None if wants_builtin or has_accelerator() else _PLATFORM


def has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU."""
    import torch

    return torch.cuda.is_available() or torch.accelerator.is_available()
