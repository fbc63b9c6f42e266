# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""An encode worker with a fault: it negates one row of each embedding on its way to the pool.

    python -m tests.support.disturbed_encode_worker  # arguments as of the encode worker

Tests of exact answers must notice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

if __name__ == "__main__":
    from dynamo.sglang_mm_resume.transport.copies import Copy
    from dynamo.sglang_mm_resume.transport.memory import PoolMemory
    from dynamo.sglang_mm_resume.workers.run import run, sglang_help
    from dynamo.sglang_mm_resume.workers.start_encode import worker

    scatter = PoolMemory.scatter

    def disturbed(self: PoolMemory, rows: torch.Tensor, blocks: Sequence[int]) -> Copy:
        """Copy the rows; the first of the whole embedding changes its sign."""
        is_first_piece = rows.storage_offset() == 0
        if is_first_piece:
            rows = rows.clone()
            rows[0] *= -1
        return scatter(self, rows, blocks)

    PoolMemory.scatter = disturbed
    run("encode_worker", worker, sglang_help)
