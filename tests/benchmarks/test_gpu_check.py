# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/gpu_check`: the parts that need no GPU, and that a fault does not pass as well."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import command, parts, rows, under_test
from benchmarks.gpu_check.rows import Options, Outcome, Row
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

ON_CPU = Options("cpu", 0, quick=True)
LIMIT_S = 120.0


def check(
    file: Path, *more: str, preload: str = "torch"
) -> tuple[subprocess.CompletedProcess[str], dict[str, Row]]:
    """Run the command in a process of its own, as its processes are forked from one server."""
    arguments = ["--device", "cpu", "--quick", "--json", str(file), *more]
    code = f"from benchmarks.gpu_check.command import main; exit(main({arguments}, [{preload!r}]))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    entries = json.loads(file.read_text())["rows"]
    return found, {
        each["name"]: Row(**each | {"outcome": Outcome(each["outcome"])}) for each in entries
    }


def test_without_a_gpu_its_parts_are_left_out_and_the_others_hold(tmp_path: Path) -> None:
    found, lines = check(tmp_path / "rows.json")
    assert found.returncode == 0, found.stdout + found.stderr
    by_outcome = {o: [n for n, r in lines.items() if r.outcome == o] for o in Outcome}
    assert by_outcome[Outcome.FAILED] == []
    assert set(by_outcome[Outcome.OK]) >= {
        "copies, pool on cpu, rows on cpu",
        "WRITE, pools on cpu",
        "hand-off of 1,024 tokens, pools on cpu, rows on cpu",
        "host memory of embeddings, pool on cpu",
    }
    assert all(lines[name].why == rows.NO_GPU for name in by_outcome[Outcome.NOT_APPLICABLE])
    assert not any("cuda" in name for name in by_outcome[Outcome.OK])
    assert found.stdout.startswith("check "), "the table alone is on stdout"
    assert all(name in found.stdout for name in lines)


def test_one_wrong_bit_makes_it_fail(tmp_path: Path) -> None:
    fault = "tests.support.disturbed_pool"
    found, lines = check(tmp_path / "rows.json", "--only", "copies", preload=fault)
    assert found.returncode == 1
    bad = [name for name, row in lines.items() if row.outcome is Outcome.FAILED]
    assert bad == ["copies, pool on cpu, rows on cpu"]
    assert "bytes are not as they were copied" in found.stdout


# Parts that go wrong, each run in a process of its own.


def crashes(options: Options) -> Iterator[Row]:
    yield rows.judged("first", "1", "1", True, "")
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(options: Options) -> Iterator[Row]:
    time.sleep(10 * LIMIT_S)
    yield rows.judged("never", "1", "1", True, "")


def raises(options: Options) -> Iterator[Row]:
    yield rows.judged("first", "1", "1", True, "")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def says_nothing(options: Options) -> Iterator[Row]:
    yield from ()


@pytest.mark.parametrize(
    ("part", "limit_s", "why"),
    [
        ("crashes", LIMIT_S, "SIGSEGV"),
        ("hangs", 0.1, "did not end within 0.1 s"),
        ("raises", LIMIT_S, "illegal memory access"),
        ("says_nothing", LIMIT_S, "checked nothing"),
    ],
)
def test_a_part_that_does_not_end_well_has_failed(part: str, limit_s: float, why: str) -> None:
    path = f"tests.benchmarks.test_gpu_check:{part}"
    *_, last = command.run(command.Part(part, path), ON_CPU, limit_s)
    assert last.outcome is Outcome.FAILED
    assert why in last.why


def test_the_threads_of_an_encode_worker_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for its towers, as on a GPU; a rename would leave nothing to look at."""
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    with under_test.encoder_threads(base_gpu_id=1) as threads:
        assert len(threads) == 3
        for pool in threads.values():
            assert pool.submit(int).result() == 0
    assert used == [1, 1, 1]


def test_a_thread_that_says_no_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with one GPU, where the current device is right by chance."""

    @contextmanager
    def two_pools(base_gpu_id: int) -> Iterator[dict[str, ThreadPoolExecutor]]:
        told = ThreadPoolExecutor(1, "told", torch.cuda.set_device, (base_gpu_id,))
        with told, ThreadPoolExecutor(1, "untold") as untold:
            yield {"told": told, "untold": untold}

    monkeypatch.setattr(under_test, "encoder_threads", two_pools)
    monkeypatch.setattr(under_test, "device_of_auto", lambda base: torch.device("cuda", base))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    auto, told, untold = parts.current_devices(Options("cuda:0", 0, quick=True))
    assert auto.outcome is told.outcome is Outcome.OK
    assert untold.outcome is Outcome.FAILED


def test_memory_that_is_kept_without_a_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def keep(self: PoolMemory, num_tokens: int) -> torch.Tensor:
        kept.append(torch.empty((num_tokens, under_test.WIDTH), dtype=torch.bfloat16))
        return kept[-1]

    monkeypatch.setattr(PoolMemory, "empty_rows", keep)
    (row,) = parts.kept_memory(ON_CPU)
    assert row.outcome is Outcome.FAILED


def test_nothing_checked_is_no_success() -> None:
    left_out = rows.skipped("copies", rows.NO_GPU)
    assert rows.exit_code([left_out]) == 1
    assert rows.exit_code([left_out, rows.judged("a", "1", "1", True, "")]) == 0
    with pytest.raises(ValueError, match="why"):
        rows.judged("a", "1", "2", False, "")


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x"])
def test_a_device_that_is_none_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        command._arguments(["--device", device])
    assert refused.value.code == 2
    assert "neither cpu nor cuda:N" in capsys.readouterr().err
