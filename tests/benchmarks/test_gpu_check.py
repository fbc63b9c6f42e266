# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu_check without a GPU: it runs, and it finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from benchmarks.gpu_check import __main__ as gpu_check
from benchmarks.gpu_check import copies
from benchmarks.gpu_check.cases import HOST
from dynamo.sglang_mm_resume.transport.copies import Copy
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from tests.conftest import ROOT

DEADLINE_S = 120


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.mark.timeout(DEADLINE_S + 30)
def test_copies_and_writes_between_two_processes_are_right() -> None:
    done = run("--only", "driver,copies,busy,writes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "driver: skip, copies: ok, busy: skip, writes: ok"
    assert "pool on cpu to pool on cpu, a chunk" in done.stdout
    assert "over CMA" in done.stdout


@pytest.mark.full
@pytest.mark.timeout(DEADLINE_S + 30)
def test_a_tower_and_its_threads_are_where_they_should_be() -> None:
    done = run("--only", "tower")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "tower: ok"


def test_a_row_in_the_wrong_place_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scatter = PoolMemory.scatter

    def one_too_far(self: PoolMemory, rows: torch.Tensor, blocks: Sequence[int]) -> Copy:
        return scatter(self, rows, [block + 1 for block in blocks])

    monkeypatch.setattr(PoolMemory, "scatter", one_too_far)
    monkeypatch.setattr(copies, "SIZES", (1,))
    assert gpu_check._run("copies", HOST) == "FAIL"
    assert "scatter: 1 rows on cpu" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit) as refused:
        gpu_check.main(["--device", "cuda:99"])
    assert refused.value.code == 2
