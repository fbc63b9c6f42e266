# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Importing this plants a fault: each pool flips a bit of the last row that is copied into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynamo.sglang_mm_resume.transport.copies import Copy
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

scatter = PoolMemory.scatter


def disturbed(self: PoolMemory, rows: torch.Tensor, blocks: Sequence[int]) -> Copy:
    rows = rows.clone()
    rows[-1].view(torch.uint8)[0] ^= 1
    return scatter(self, rows, blocks)


PoolMemory.scatter = disturbed
