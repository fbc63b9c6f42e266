# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Entry point `sglang.srt.plugins`: P/D over NIXL in host memory, videos, LoRA, ranks.

SGLang calls `register` once in each of its processes. On all machines, `finite_logits.py` keeps a
request from ending the engine. The rest is for machines without an accelerator. SGLang registers
KV memory with NIXL as GPU memory unless told otherwise, which fails where there is none, and has
NIXL poll without a pause. It pins the frames of a video and what belongs to LoRA adapters for a
GPU, which fails alike, and has the ranks of an engine talk over NCCL where that is installed, GPU
or not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from dynamo.sglang_mm_resume.sglang_cpu import finite_logits

KV_MANAGER_INIT = "sglang.srt.disaggregation.nixl.conn.NixlKVManager.__init__"
NIXL_AGENT_INIT = "nixl._api.nixlBind.nixlAgent.__init__"
PIN_MEMORY = "torch.Tensor.pin_memory"
NCCL_INIT = "sglang.srt.distributed.device_communicators.pynccl_wrapper.NCCLLibrary.__init__"
#: What pins memory for LoRA adapters: when an engine starts, loads one, and for every batch.
LORA_PINNING: Final = (
    "sglang.srt.lora.lora_manager.LoRAManager.__init__",
    "sglang.srt.lora.lora_manager.LoRAManager.load_lora_adapter",
    "sglang.srt.lora.lora_manager.LoRAManager.prepare_lora_batch",
)
#: Microseconds between two polls of NIXL's progress thread. An idle agent took 2.6 % of a core with
#: it, and a message arrived within 0.1 ms.
POLL_PERIOD_US: Final = 1000


def register() -> None:
    """Hook into what SGLang uses; where torch sees an accelerator, keep logits finite only."""
    finite_logits.register()
    from dynamo.sglang_mm_resume.sglang_cpu.platform import has_accelerator

    if has_accelerator():
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(KV_MANAGER_INIT, kv_in_host_memory, HookType.BEFORE)
    HookRegistry.register(NIXL_AGENT_INIT, rest_between_polls, HookType.BEFORE)
    HookRegistry.register(PIN_MEMORY, leave_unpinned, HookType.REPLACE)
    HookRegistry.register(NCCL_INIT, leave_nccl_out, HookType.REPLACE)
    for target in LORA_PINNING:
        HookRegistry.register(target, without_pinning, HookType.AROUND)


def kv_in_host_memory(manager: Any, args: Any, *rest: Any, **named: Any) -> None:
    """Mark all KV memory in `args` (SGLang's KVArgs) as host memory, before the manager reads it.

    Has the signature of the hooked constructor; returning None leaves its arguments as they are.
    """
    args.kv_data_mem_kinds = ["DRAM"] * len(args.kv_data_ptrs)


def leave_unpinned(tensor: Any, *_: Any, **__: Any) -> Any:
    """The tensor itself: there is no device to copy it to."""
    return tensor


def leave_nccl_out(library: Any, *_: Any, **__: Any) -> None:
    """As where NCCL is not installed: ranks then talk over gloo alone."""
    raise OSError("NCCL needs GPUs")


def rest_between_polls(agent: Any, name: str, config: Any) -> None:
    """Have the progress thread of an agent pause, before the agent reads its config.

    Without, a prefill and a decode engine take two cores for ever, from all others of the machine.
    """
    config.pthrDelay = POLL_PERIOD_US


def without_pinning(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call a function of SGLang's with ordinary memory wherever it asks torch for pinned."""
    with _nothing_is_pinned():
        return original(*args, **named)


@contextmanager
def _nothing_is_pinned() -> Iterator[None]:
    """SGLang calls what is hooked in one thread, so that nobody else sees these names."""
    import torch

    def ordinary(make: Any) -> Any:
        def made(*args: Any, pin_memory: bool = False, **named: Any) -> Any:
            return make(*args, **named)

        return made

    pinning = {"tensor": torch.tensor, "zeros": torch.zeros}
    for name, make in pinning.items():
        setattr(torch, name, ordinary(make))
    try:
        yield
    finally:
        for name, make in pinning.items():
            setattr(torch, name, make)
