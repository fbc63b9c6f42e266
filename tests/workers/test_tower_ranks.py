# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's vision tower on two ranks, over gloo, makes the rows that it makes on one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, TRAINED_MODEL
from tests.support.tower_rows import SIZES

DEADLINE_S = 150

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(2 * DEADLINE_S + 30)]

ARGUMENTS = (
    *("--model-path", str(TRAINED_MODEL)),
    *("--device", "cpu"),
    *("--dtype", "float32"),
    *("--mm-attention-backend", "sdpa"),
)


def test_two_ranks_make_the_rows_of_one(tmp_path: Path) -> None:
    alone, together = (_rows(tmp_path / name, *flags) for name, flags in FLAGS.items())
    assert [len(rows) for rows in alone] == [columns * rows for columns, rows in SIZES]
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


FLAGS: dict[str, tuple[str, ...]] = {"alone": (), "together": ("--tp-size", "2")}


def _rows(path: Path, *flags: str) -> list[torch.Tensor]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tower_rows", str(path), *ARGUMENTS, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[torch.Tensor] = torch.load(path)
    return rows
