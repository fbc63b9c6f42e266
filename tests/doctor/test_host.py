# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Each check of the machine, with facts that are right and wrong."""

from pathlib import Path
from resource import RLIM_INFINITY

import pytest

from dynamo.sglang_mm_resume.doctor import host
from dynamo.sglang_mm_resume.doctor.gpus import PoolFacts
from dynamo.sglang_mm_resume.doctor.report import Outcome

GIB = 2**30


def test_this_machine_is_examined() -> None:
    names = [result.name for result in host.host()]
    of_gpus = ["pool on the GPU", "pinned host pool"]
    assert names == [
        *("cores", "shared memory", "open files", "ptrace", "RDMA", "locked memory"),
        *("huge pages", *of_gpus),
    ]
    without_gpu = {result.name: result.outcome for result in host.host()}
    assert {without_gpu[name] for name in of_gpus} == {Outcome.SKIP}


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


@pytest.mark.parametrize(
    ("enabled", "shared", "outcome"),
    [
        ("always [madvise] never", "always within_size advise [never] deny force", Outcome.OK),
        ("[always] madvise never", None, Outcome.OK),
        ("always madvise [never]", "always within_size advise [never] deny force", Outcome.WARN),
        (None, None, Outcome.WARN),
    ],
)
def test_huge_pages(enabled: str | None, shared: str | None, outcome: Outcome) -> None:
    result = host.huge_pages(enabled, shared)
    assert result.outcome is outcome
    assert result.figures["shmem_enabled"] == ("never" if shared else None)


@pytest.mark.parametrize(
    ("pool", "on_gpu", "on_host"),
    [
        (None, Outcome.SKIP, Outcome.SKIP),
        (PoolFacts(legacy_ipc=True, pin_error=0), Outcome.OK, Outcome.OK),
        (PoolFacts(legacy_ipc=False, pin_error=0), Outcome.WARN, Outcome.OK),
        (PoolFacts(legacy_ipc=True, pin_error=2), Outcome.OK, Outcome.WARN),
        (PoolFacts(error="OutOfMemoryError: 0 bytes free"), Outcome.WARN, Outcome.SKIP),
    ],
)
def test_what_pools_may_do_on_a_gpu(
    pool: PoolFacts | None, on_gpu: Outcome, on_host: Outcome
) -> None:
    assert host.gpu_pool(pool).outcome is on_gpu
    assert host.pinned(pool, 8 * 2**20).outcome is on_host


def test_memory_that_nobody_may_map_names_the_usual_cause() -> None:
    result = host.gpu_pool(PoolFacts(legacy_ipc=False, pin_error=0))
    assert "expandable_segments" in result.action
    assert "DYN_SGL_MM_RESUME_POOL_DEVICE" in result.action


def test_a_limit_of_locked_memory_is_told_where_pinning_fails() -> None:
    assert "8 MiB" in host.pinned(PoolFacts(legacy_ipc=True, pin_error=2), 8 * 2**20).text
