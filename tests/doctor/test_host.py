# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Each check of the machine, with facts that are right and wrong."""

from collections.abc import Callable
from pathlib import Path
from resource import RLIM_INFINITY

import pytest

from dynamo.sglang_mm_resume.doctor import host
from dynamo.sglang_mm_resume.doctor.gpus import Gpu
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result

GIB = 2**30


def test_this_machine_is_examined() -> None:
    names = [result.name for result in host.host()]
    assert names[:4] == ["cores", "shared memory", "open files", "ptrace"]
    assert names[4:] == ["RDMA", "locked memory", "CUDA IPC", "pinned memory"]


@pytest.mark.parametrize(("number", "outcome"), [(2.0, Outcome.OK), (1.5, Outcome.WARN)])
def test_cores(number: float, outcome: Outcome) -> None:
    assert host.cores(number).outcome is outcome


@pytest.mark.parametrize(
    ("text", "at_most"), [("150000 100000", 1.5), ("50000 100000", 0.5), ("max 100000", None)]
)
def test_the_quota_of_a_container_counts(text: str, at_most: float | None, tmp_path: Path) -> None:
    without = host.usable_cores(tmp_path / "absent")
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert host.usable_cores(quota) == (min(without, at_most) if at_most else without)


@pytest.mark.parametrize(
    ("num_bytes", "outcome"),
    [(24 * GIB, Outcome.OK), (64 * 2**20, Outcome.WARN), (None, Outcome.FAIL)],
)
def test_shared_memory(num_bytes: int | None, outcome: Outcome) -> None:
    assert host.shared_memory(num_bytes).outcome is outcome


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [(RLIM_INFINITY, Outcome.OK), (65536, Outcome.OK), (1024, Outcome.WARN)],
)
def test_open_files(limit: int, outcome: Outcome) -> None:
    assert host.open_files(limit).outcome is outcome


@pytest.mark.parametrize(
    ("scope", "capable", "outcome"),
    [
        (None, False, Outcome.OK),
        ("0", False, Outcome.OK),
        ("1", False, Outcome.OK),
        ("2", True, Outcome.OK),
        ("2", False, Outcome.WARN),
        ("3", True, Outcome.WARN),
    ],
)
def test_ptrace(scope: str | None, capable: bool, outcome: Outcome) -> None:
    assert host.ptrace(scope, capable).outcome is outcome


@pytest.mark.parametrize(
    ("devices", "verbs", "outcome"),
    [
        ([], [], Outcome.SKIP),
        (["mlx5_0"], ["uverbs0"], Outcome.OK),
        (["mlx5_0"], [], Outcome.WARN),
    ],
)
def test_rdma(devices: list[str], verbs: list[str], outcome: Outcome) -> None:
    assert host.rdma(devices, verbs).outcome is outcome


@pytest.mark.parametrize(
    ("limit", "devices", "outcome"),
    [
        (RLIM_INFINITY, ["mlx5_0"], Outcome.OK),
        (8 * 2**20, ["mlx5_0"], Outcome.FAIL),
        (8 * 2**20, [], Outcome.SKIP),
    ],
)
def test_locked_memory(limit: int, devices: list[str], outcome: Outcome) -> None:
    assert host.memlock(limit, devices).outcome is outcome


@pytest.mark.parametrize("check", [host.cuda_ipc, host.pinned])
def test_each_gpu_is_judged_by_what_the_driver_says(check: Callable[..., Result]) -> None:
    def gpu(answer: bool | None) -> Gpu:
        return Gpu(name="a", memory_mib=1, ipc_capable=answer, pins_host_memory=answer)

    assert check([]).outcome is Outcome.SKIP
    assert check([gpu(True), gpu(True)]).outcome is Outcome.OK
    for answer in (False, None):
        result = check([gpu(True), gpu(answer)])
        assert result.outcome is Outcome.WARN
        assert "cuda:1" in result.text and "cuda:0" not in result.text
