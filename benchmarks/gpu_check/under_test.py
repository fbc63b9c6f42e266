# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is checked: the one place where this package names functions of workers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Final
from unittest import mock

import torch

from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.doctor.gpus import pin_error
from dynamo.sglang_mm_resume.transport.cuda import is_ipc_capable
from dynamo.sglang_mm_resume.transport.memory import DTYPES, PoolMemory
from dynamo.sglang_mm_resume.workers.gpus import pool_device

#: Tokens of a block, and elements of a row, as workers of Qwen2.5-VL-7B have them.
BLOCK_SIZE: Final = 128
WIDTH: Final = 3584

__all__ = ["BLOCK_SIZE", "DTYPES", "WIDTH", "is_ipc_capable", "pin_error"]


def pool(
    device: str,
    num_blocks: int,
    dtype: str = "bfloat16",
    width: int = WIDTH,
    block_size: int = BLOCK_SIZE,
    max_kept: int = 0,
) -> PoolMemory:
    """A pool as a worker makes it."""
    layout = Layout(model="gpu-check", width=width, dtype=dtype, block_size=block_size)
    return PoolMemory(layout, num_blocks, torch.device(device), max_kept)


def device_of_auto(base_gpu_id: int) -> torch.device:
    """Where a worker with this `--base-gpu-id` has its pool by default, on a machine with RDMA."""
    return pool_device("auto", range(base_gpu_id, base_gpu_id + 1), has_rdma=True)


@contextmanager
def encoder_threads(base_gpu_id: int) -> Iterator[dict[str, ThreadPoolExecutor]]:
    """The thread pools of an encode worker's `VisionEncoder`, which gets stand-ins for its towers:
    no model is loaded. Raises ImportError where SGLang is not installed.
    """
    from dynamo.sglang_mm_resume.workers import sglang_encoder

    towers = SimpleNamespace(first=None, dp_size=1, lost=None, lead=lambda model: None)
    towers.close = lambda: None
    preprocessor = SimpleNamespace()
    tower = SimpleNamespace(
        device="cuda", model=None, gpu_id=base_gpu_id, preprocessor=preprocessor
    )
    arguments = SimpleNamespace(tp_size=1, dp_size=1, base_gpu_id=base_gpu_id, device="cuda")
    with (
        mock.patch.object(sglang_encoder, "Towers", lambda *_: towers),
        mock.patch.object(sglang_encoder, "_make_encoder", lambda *_: tower),
        mock.patch.object(sglang_encoder, "_install_load_video_passthrough", lambda: None),
    ):
        encoder = sglang_encoder.VisionEncoder(arguments, num_threads=1)
        held = {**vars(encoder), **vars(preprocessor)}
        found = {n: v for n, v in held.items() if isinstance(v, ThreadPoolExecutor)}
        try:
            yield found
        finally:
            encoder.close()
