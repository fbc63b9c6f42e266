# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Real processes, real NIXL: what each transport is found to be, and that trials end."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dynamo.sglang_mm_resume.doctor import transports
from dynamo.sglang_mm_resume.doctor.carrier import Carrier
from dynamo.sglang_mm_resume.doctor.report import Outcome
from dynamo.sglang_mm_resume.doctor.transports import (
    Measured,
    Trial,
    TrialFailed,
    judge,
    trials,
    try_out,
)

TCP, CMA, CONFIGURED = trials(has_gpu=False, has_rdma=False)


def test_what_is_tried_depends_on_the_devices() -> None:
    names = [trial.name for trial in trials(has_gpu=True, has_rdma=True)]
    assert names == [
        "UCX: tcp",
        "UCX: CMA",
        "UCX: cuda_ipc",
        "UCX: RDMA",
        "UCX: as configured",
    ]
    assert CONFIGURED.ucx == {}  # as the operator has it


@pytest.mark.parametrize("trial", [TCP, CMA], ids=lambda trial: trial.name)
def test_a_transport_is_used_where_nothing_else_is_allowed(trial: Trial) -> None:
    found = try_out(trial)
    assert isinstance(found, Measured), found
    assert found.used is trial.expected
    assert found.num_bytes / found.seconds > 1e7
    assert judge(trial, found).outcome is Outcome.OK


def test_cma_that_cannot_be_had_is_seen_as_tcp() -> None:
    without = Trial(CMA.name, Carrier.CMA, "cpu", {"UCX_TLS": "tcp"})
    found = try_out(without)
    assert isinstance(found, Measured), found
    assert found.used is Carrier.TCP
    result = judge(without, found)
    assert result.outcome is Outcome.WARN
    assert "PID namespace" in result.action


def test_a_setting_that_nixl_refuses_is_told() -> None:
    impossible = Trial(TCP.name, Carrier.TCP, "cpu", {"UCX_TLS": "posix"})
    found = try_out(impossible)
    assert isinstance(found, TrialFailed)
    assert "receiver failed" in str(found) or "writer failed" in str(found)
    assert judge(impossible, found).outcome is Outcome.FAIL


def test_a_trial_ends_when_its_time_is_over() -> None:
    started = time.monotonic()
    found = try_out(TCP, limit_s=0.0)
    assert isinstance(found, TrialFailed)
    assert "silent" in str(found)
    assert time.monotonic() - started < 20


class Liar:
    """Stands for a process whose writes end well and bring nothing: NIXL cannot be made to."""

    def tell(self, message: Any) -> None:
        pass

    def hear(self) -> dict[str, Any]:
        counters = {"tcp": (0, 0), "rdma": (None, None)}
        return {"bytes": 1, "seconds": 1.0, "memory": "DRAM", "arrived": False, **counters}


def test_bytes_that_do_not_arrive_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def two_liars(trial: Trial, deadline: float) -> Iterator[tuple[Liar, Liar]]:
        yield Liar(), Liar()

    monkeypatch.setattr(transports, "_two_processes", two_liars)
    found = try_out(TCP)
    assert isinstance(found, TrialFailed)
    assert "did not arrive" in str(found)


@pytest.mark.parametrize(
    ("trial", "used", "outcome"),
    [
        (CONFIGURED, Carrier.CMA, Outcome.OK),
        (CONFIGURED, Carrier.RDMA, Outcome.OK),
        (CONFIGURED, Carrier.TCP, Outcome.WARN),
        (CMA, Carrier.TCP, Outcome.WARN),
        (TCP, Carrier.TCP, Outcome.OK),
    ],
)
def test_what_is_expected_and_what_is_a_fall_back(
    trial: Trial, used: Carrier, outcome: Outcome
) -> None:
    assert judge(trial, Measured(used, 10**9, 0.5)).outcome is outcome


def test_only_tcp_and_what_is_configured_must_work() -> None:
    outcomes = [judge(trial, TrialFailed("gone")).outcome for trial in (TCP, CMA, CONFIGURED)]
    assert outcomes == [Outcome.FAIL, Outcome.WARN, Outcome.FAIL]


def test_the_operator_s_own_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UCX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    assert "UCX_TLS=tcp,self" in judge(CONFIGURED, Measured(Carrier.TCP, 10**9, 0.5)).text
