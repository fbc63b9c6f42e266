# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The platform itself. Imported by name, inside SGLang, only where `activate` chose it."""

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform


class TorchNativeCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """SGLang on a CPU in pure PyTorch.

    SGLang's own CPU platform needs a build of its kernels for CPUs, which is not published as a
    package; an out-of-tree platform makes SGLang take its native code paths instead.
    """

    _enum = PlatformEnum.OOT

    def get_default_attention_backend(self) -> str:
        """The attention backend for a model whose launch names none."""
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type:
        """The KV pool of models with ordinary (multi-head) attention."""
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_paged_allocator_cls(self) -> type:
        """The allocator of KV pages."""
        from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator

        return PagedTokenToKVPoolAllocator

    def get_compile_backend(self, mode: str | None = None) -> str:
        """The backend of torch.compile: eager, as inductor runs g++ for 15 s at the first image."""
        return "eager"
