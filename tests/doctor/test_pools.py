# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pools that peers reach by a detour only are found, by what workers say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.sglang_mm_resume.doctor import pools
from dynamo.sglang_mm_resume.doctor.graph import Graph
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result
from tests.support.descriptions import silent, worker

GPU = {"memory": "VRAM"}
RDMA = {"rdma_files": ["uverbs0"]}
ELSEWHERE = {"boot_id": "boot-2", "pid_namespace": "pid:[1]"}
OTHER_POD = {"pid_namespace": "pid:[2]"}


def found(encode: dict[str, Any], prefill: dict[str, Any]) -> dict[str, Result]:
    graph = Graph("test", [worker("encode", 8, **encode), worker("prefill", 9, **prefill)])
    return {result.name: result for result in pools.checks(graph)}


@pytest.mark.parametrize(
    ("encode", "prefill", "outcome"),
    [
        ({}, OTHER_POD, Outcome.OK),
        ({}, ELSEWHERE, Outcome.OK),
        (GPU, GPU, Outcome.OK),
        (GPU, GPU | OTHER_POD, Outcome.WARN),
        (GPU, GPU | ELSEWHERE, Outcome.WARN),
        (GPU, {}, Outcome.WARN),
        (GPU | RDMA, GPU | RDMA | ELSEWHERE, Outcome.OK),
        (GPU | RDMA, RDMA | OTHER_POD, Outcome.OK),
        (GPU | RDMA, GPU | ELSEWHERE, Outcome.WARN),
    ],
)
def test_gpu_memory_needs_rdma_or_one_pid_namespace(
    encode: dict[str, Any], prefill: dict[str, Any], outcome: Outcome
) -> None:
    result = found(encode, prefill)["pool memory"]
    assert result.outcome is outcome
    if outcome is Outcome.WARN:
        assert "encode 8" in result.text and "prefill 9" in result.text
        assert "--mm-resume-pool-device cpu" in result.action


def test_a_host_pool_that_is_not_pinned_is_named() -> None:
    assert found({}, {})["pinned pools"].outcome is Outcome.SKIP
    assert found({"pinned": True}, {})["pinned pools"].outcome is Outcome.OK
    result = found({"pinned": False}, {})["pinned pools"]
    assert result.outcome is Outcome.WARN
    assert "encode 8" in result.text


def test_nobody_to_judge_is_no_result() -> None:
    assert pools.checks(Graph("test", [worker("processor", 1), silent("prefill")])) == []
