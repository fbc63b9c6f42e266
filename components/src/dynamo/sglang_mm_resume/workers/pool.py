# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How large a worker's pool is, and in which shape it grants, by its settings."""

import logging
from dataclasses import dataclass

import torch

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import POOL_DEVICE, SLOT_TOKENS, Settings
from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.layout import Layout, blocks_for
from dynamo.sglang_mm_resume.transport import cuda
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.workers.gpus import pool_device
from dynamo.sglang_mm_resume.workers.status import rdma_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pool:
    """Blocks and their bytes. Without `resumable`, a default grant is a whole slot."""

    blocks: BlockPool
    memory: PoolMemory
    resumable: bool


def make_pool(
    settings: Settings,
    layout: Layout,
    model_tokens: int | None,
    gpus: range = range(0),
    rows_on_gpu: bool = False,
) -> Pool:
    """The pool of one worker. `model_tokens`: the longest embedding the model allows, if known;
    `gpus`: those of the worker; `rows_on_gpu`: embeddings come from the first of them.

    Raises `BadArgument` naming the setting if the pool cannot be had.
    """
    default_blocks = settings.default_blocks
    if not settings.use_block_allocator:
        slot_tokens = settings.slot_tokens or model_tokens
        if slot_tokens is None:
            raise BadArgument(
                f"{SLOT_TOKENS.label}: this model names no largest embedding, "
                "so the slot size must be given"
            )
        default_blocks = blocks_for(slot_tokens, settings.block_size)
    num_blocks = settings.pool_buffers * default_blocks
    has_rdma = bool(rdma_files())
    device = pool_device(settings.pool_device, gpus, has_rdma)
    rows_on = torch.device("cuda", gpus[0]) if gpus and rows_on_gpu else None
    try:
        memory = PoolMemory(layout, num_blocks, device, settings.max_kept_bytes, rows_on)
    except (RuntimeError, OSError, MemoryError, OverflowError, torch.OutOfMemoryError) as error:
        raise BadArgument(
            f"a pool of {num_blocks * layout.block_bytes / 2**20:.0f} MiB does not fit on "
            f"{device}: lower --embedding-cache-buffer-size (SGLANG_EMBEDDING_CACHE_BUFFER_SIZE): "
            f"{error}"
        ) from error
    _require_reachable(memory, has_rdma)
    logger.info(
        "buffer pool: %d blocks of %d tokens (%.1f MiB) on %s, default grant %d blocks, layout %s",
        num_blocks,
        layout.block_size,
        memory.num_bytes / 2**20,
        memory.device,
        default_blocks,
        layout.fingerprint,
    )
    blocks = BlockPool(num_blocks, settings.block_size, default_blocks)
    return Pool(blocks, memory, settings.use_block_allocator)


def _require_reachable(memory: PoolMemory, has_rdma: bool) -> None:
    """Raises `BadArgument` for memory of a GPU into which no peer can write at its speed."""
    if memory.device.type == "cpu" or has_rdma or cuda.is_ipc_capable(memory.tensor):
        return
    raise BadArgument(
        f"{POOL_DEVICE.label}: memory of {memory.device} cannot be shared by CUDA IPC, and "
        f"there is no RDMA device: take {POOL_DEVICE.flag} cpu"
    )
