# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One pool tensor per worker, for life (R1), and the copies in and out of its blocks.

Shape `(num_blocks, block_size, width)`. Copies are made by threads, never by the event loop: the
drivers gather in their thread pool, and scatter in the thread that writes (R15).
"""

from collections.abc import Iterator, Sequence

import torch

from dynamo.sglang_mm_resume.core.errors import ProtocolError
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.transport import cuda
from dynamo.sglang_mm_resume.transport.copies import Copier, Copy
from dynamo.sglang_mm_resume.transport.host_memory import HostMemory, populated

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PoolMemory:
    """The bytes behind a `BlockPool`."""

    def __init__(
        self,
        layout: Layout,
        num_blocks: int,
        device: torch.device,
        max_kept: int = 0,
        rows_on: torch.device | None = None,
    ) -> None:
        """`max_kept`: bytes of assembled embeddings that stay for the next ones. `rows_on`: the GPU
        that rows come from, if one does: a pool in host memory is then pinned for it.

        Raises `RuntimeError`, `OSError` or `MemoryError` if there is not so much memory.
        """
        self.layout = layout
        self.num_blocks = num_blocks
        num_bytes = num_blocks * layout.block_bytes
        self.pinned: bool | None = None
        """Whether a GPU copies at full speed from and to a pool in host memory; `None`: none does.
        """
        if device.type == "cpu":
            pool = populated(num_bytes)
            self._host = HostMemory(max_kept)
            if rows_on is not None:
                self.pinned = cuda.Pinning(rows_on).pin(pool.data_ptr(), num_bytes)
        else:
            pool = cuda.allocate(num_bytes, device)
            self._host = HostMemory(max_kept, cuda.Pinning(pool.device))
        shape = (num_blocks, layout.block_size, layout.width)
        self.tensor = pool.view(DTYPES[layout.dtype]).view(shape)
        self.device = self.tensor.device
        self._copier = Copier()

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.layout.block_bytes

    def gather(self, blocks: Sequence[int], rows: torch.Tensor) -> None:
        """Copy the first `len(rows)` rows of `blocks` to `rows`, `(num_tokens, width)`.

        Raises `ProtocolError` if `rows` are not contiguous rows of this pool's layout.
        """
        self._require_fit(rows, blocks)
        if not rows.is_contiguous():
            raise ProtocolError(f"rows with strides {rows.stride()} cannot take a copy of blocks")
        self._copy(
            (rows[part], self._run(run)[: part.stop - part.start])
            for part, run in self._parts(blocks, len(rows))
        )

    def scatter(self, rows: torch.Tensor, blocks: Sequence[int]) -> Copy:
        """Copy `rows`, `(num_tokens, width)`, to the first rows of `blocks` (R2).

        With a GPU on either side the copy is only begun: keep `rows`, and the blocks, until it is
        done. Raises `ProtocolError` if `rows` are not rows of this pool's layout.
        """
        self._require_fit(rows, blocks)
        return self._copier.begin(
            (self._run(run)[: part.stop - part.start], rows[part])
            for part, run in self._parts(blocks, len(rows))
        )

    def empty_rows(self, num_tokens: int) -> torch.Tensor:
        """A host tensor for an assembled embedding: the engine's processes take it from there."""
        shape = (num_tokens, self.layout.width)
        return self._host.empty(shape, self.tensor.dtype)

    def _require_fit(self, rows: torch.Tensor, blocks: Sequence[int]) -> None:
        """Copies move bytes and cast nothing (R11): rows of another kind would become garbage."""
        found = (rows.dtype, rows.ndim, rows.shape[-1])
        if found != (self.tensor.dtype, 2, self.layout.width):
            raise ProtocolError(
                f"rows are {rows.dtype} of shape {tuple(rows.shape)}, but this pool holds "
                f"{self.tensor.dtype} rows of width {self.layout.width}"
            )
        if len(rows) > len(blocks) * self.layout.block_size:
            raise ProtocolError(f"{len(rows)} rows do not fit into {len(blocks)} blocks")

    def _copy(self, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._copier.begin(pairs).wait()

    def _run(self, run: range) -> torch.Tensor:
        return self.tensor[run.start : run.stop].view(-1, self.layout.width)

    def _parts(self, blocks: Sequence[int], num_tokens: int) -> Iterator[tuple[slice, range]]:
        """Cut `num_tokens` rows where block indices stop being adjacent: fewer, longer copies."""
        start = 0
        for run in adjacent_runs(blocks):
            stop = min(start + len(run) * self.layout.block_size, num_tokens)
            if stop > start:
                yield slice(start, stop), run
            start = stop


def adjacent_runs(blocks: Sequence[int]) -> Iterator[range]:
    """`[3, 4, 5, 9, 1, 2]` as `3..5`, `9..9`, `1..2`."""
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[end - 1] + 1:
            yield range(blocks[start], blocks[end - 1] + 1)
            start = end
