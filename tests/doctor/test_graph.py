# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Who is missing, who is silent and who does not fit is found, and named."""

import socket
from pathlib import Path
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.doctor import graph as graphs
from dynamo.sglang_mm_resume.doctor.graph import Graph, Undescribed, Worker
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result
from tests.support.descriptions import silent, worker
from tests.support.web import Page, serve

WHOLE = (
    worker("processor", 1),
    worker("encode", 2),
    worker("encode", 3),
    worker("prefill", 4),
    worker("decode", 5),
)


def found(*workers: Worker) -> dict[str, Result]:
    """The results of all checks, by name."""
    return {result.name: result for result in graphs.checks(Graph("test", workers))}


def test_a_whole_graph_that_fits_is_well() -> None:
    results = found(*WHOLE)
    assert {result.outcome for result in results.values()} == {Outcome.OK}
    assert "1 processor, 2 encode, 1 prefill, 1 decode" in results["workers"].text
    assert "on all 5" in results["protocol version"].text
    assert "on all 3" in results["block size"].text


def test_a_graph_needs_no_decode_worker() -> None:
    assert found(*WHOLE[:-1])["workers"].outcome is Outcome.OK


@pytest.mark.parametrize("role", graphs.NEEDED)
def test_a_role_that_nobody_has_fails_and_is_named(role: str) -> None:
    result = found(*(w for w in WHOLE if w.role != role))["workers"]
    assert result.outcome is Outcome.FAIL
    assert role in result.text
    assert role in result.action


def test_an_empty_namespace_points_at_the_environment() -> None:
    results = found()
    assert list(results) == ["workers", "answers"]
    assert "DYN_NAMESPACE" in results["workers"].action
    assert results["answers"].outcome is Outcome.SKIP


def test_who_does_not_answer_fails_and_is_named() -> None:
    result = found(*WHOLE, silent("prefill", 123))["answers"]
    assert result.outcome is Outcome.FAIL
    assert "prefill 123 (10.0.0.7:4321): no answer in 5 s" in result.text
    assert result.figures["silent"] == ["123"]


def test_only_silence_is_still_a_result() -> None:
    results = found(silent("prefill"), silent("encode"), silent("processor"))
    assert results["answers"].outcome is Outcome.FAIL
    assert list(results) == ["workers", "answers"]


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("model", "other", "--served-model-name"),
        ("width", 1280, "--model-path"),
        ("dtype", "float16", "--dtype"),
        ("block_size", 16, "--multimodal-block-size"),
    ],
)
def test_a_field_that_differs_fails_and_names_values_and_workers(
    field: str, value: Any, flag: str
) -> None:
    results = found(*WHOLE, worker("prefill", 77, **{field: value}, host="node-2"))
    result = results[field.replace("_", " ")]
    assert result.outcome is Outcome.FAIL
    assert f"{value} on prefill 77 (node-2, pid 1)" in result.text
    assert "encode 2 (node-1, pid 1)" in result.text
    assert flag in result.action
    others = [r.outcome for name, r in results.items() if r is not result]
    assert set(others) == {Outcome.OK}


def test_another_protocol_version_fails_whatever_its_layout_has() -> None:
    other = worker("encode", 7, protocol_version=PROTOCOL_VERSION + 2, layout={"something": "else"})
    results = found(*WHOLE, other)
    assert results["protocol version"].outcome is Outcome.FAIL
    assert f"{PROTOCOL_VERSION + 2} on encode 7" in results["protocol version"].text
    assert results["width"].outcome is Outcome.OK  # that is not what is wrong


def test_a_processor_of_another_protocol_version_fails_too() -> None:
    other = worker("processor", 7, protocol_version=PROTOCOL_VERSION + 2)
    assert found(*WHOLE, other)["protocol version"].outcome is Outcome.FAIL


def test_the_release_before_is_understood_and_warned_of() -> None:
    other = worker("encode", 7, protocol_version=PROTOCOL_VERSION - 1)
    result = found(*WHOLE, other)["protocol version"]
    assert result.outcome is Outcome.WARN
    assert f"{PROTOCOL_VERSION - 1} on encode 7" in result.text


def test_other_releases_are_warned_of() -> None:
    result = found(*WHOLE, worker("decode", 8, versions={"sglang": "0.5.20"}))["releases"]
    assert result.outcome is Outcome.WARN
    assert "sglang: 0.5.20 and 0.5.21" in result.text


class OneAnswer:
    """Stands for Dynamo's client of a worker that answers so."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def direct(self, request: Any, instance_id: int, annotated: bool = True) -> Any:
        async def stream() -> Any:
            if isinstance(self._answer, Exception):
                raise self._answer
            yield self._answer

        return stream()

    def instance_ids(self) -> list[int]:
        return [1]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"role": "encode"}, "cannot be read"),
        ("nonsense", "cannot be read"),
        (ValueError("Unavailable: gone"), "gone"),
    ],
)
async def test_an_answer_that_says_nothing_is_an_error(answer: Any, text: str) -> None:
    with pytest.raises(Undescribed, match=text):
        await graphs.describe(OneAnswer(answer), 1)


# --- Discovery ---


async def test_etcd_that_nobody_serves_fails_soon() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = await graphs.discovery("etcd", {"ETCD_ENDPOINTS": endpoint})
    assert result.outcome is Outcome.FAIL
    assert endpoint in result.text
    assert "ETCD_ENDPOINTS" in result.action


async def test_one_etcd_of_several_is_enough() -> None:
    etcd = Page(b'{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}', "application/json")
    with socket.socket() as unused, serve({"/version": etcd}) as url:
        unused.bind(("127.0.0.1", 0))
        endpoints = f"http://127.0.0.1:{unused.getsockname()[1]},{url.removeprefix('http://')}"
        result = await graphs.discovery("etcd", {"ETCD_ENDPOINTS": endpoints})
    assert result.outcome is Outcome.OK


@pytest.mark.parametrize(
    "page", [Page(b"hello", "text/plain"), Page(b"", manner="silent")], ids=["other", "silent"]
)
async def test_who_is_no_etcd_or_says_nothing_is_none(page: Page) -> None:
    """Dynamo would wait for it for two minutes."""
    with serve({"/version": page}) as url:
        result = await graphs.discovery("etcd", {"ETCD_ENDPOINTS": url})
    assert result.outcome is Outcome.FAIL
    assert url in result.text


async def test_an_endpoint_that_is_none_fails() -> None:
    result = await graphs.discovery("etcd", {"ETCD_ENDPOINTS": "http://etcd:many"})
    assert result.outcome is Outcome.FAIL


async def test_a_folder_of_files_must_be_there(tmp_path: Path) -> None:
    there, absent = {"DYN_FILE_KV": str(tmp_path)}, {"DYN_FILE_KV": str(tmp_path / "no")}
    assert (await graphs.discovery("file", there)).outcome is Outcome.OK
    assert (await graphs.discovery("file", absent)).outcome is Outcome.FAIL


@pytest.mark.parametrize("backend", ["kubernetes", "mem", "zookeeper"])
async def test_backends_that_show_nothing_here_fail(backend: str) -> None:
    assert (await graphs.discovery(backend, {})).outcome is Outcome.FAIL


VRAM = {"memory": "VRAM"}


def between(encode: dict[str, Any], prefill: dict[str, Any]) -> Result:
    """How two workers with these facts can reach each other's GPU."""
    workers = (worker("encode", 2, **encode), worker("prefill", 4, **prefill))
    return found(worker("processor", 1), *workers)["GPU memory"]


@pytest.mark.parametrize(
    ("encode", "prefill"),
    [
        (VRAM, VRAM),
        ({}, VRAM | {"pid_namespace": "pid:[2]"}),
        (VRAM, {"pid_namespace": "pid:[2]"}),
        (VRAM | {"rdma_devices": ["mlx5_0"]}, VRAM | {"rdma_devices": ["mlx5_1"], "boot_id": "b"}),
        (VRAM | {"ipc_namespace": "ipc:[2]"}, VRAM),
        (VRAM | {"pid_namespace": ""}, VRAM),
        (VRAM | {"boot_id": ""}, VRAM),
    ],
    ids=["one namespace", "host pool", "host pool 2", "RDMA", "IPC", "unknown", "unknown boot"],
)
def test_gpus_that_can_reach_each_other_are_well(
    encode: dict[str, Any], prefill: dict[str, Any]
) -> None:
    assert between(encode, prefill).outcome is Outcome.OK


def test_cuda_ipc_cannot_work_between_pid_namespaces() -> None:
    result = between(VRAM, VRAM | {"pid_namespace": "pid:[2]"})
    assert result.outcome is Outcome.WARN
    assert "PID namespaces differ (pid:[1] and pid:[2])" in result.text
    assert "encode 2" in result.text
    assert "prefill 4" in result.text
    assert "hostPID" in result.action
    assert "DYN_SGL_MM_RESUME_POOL_DEVICE" in result.action
    assert result.figures["slow"] == [["2", "4"]]


@pytest.mark.parametrize("devices", [[], ["mlx5_0"]])
def test_gpus_of_two_machines_need_rdma_on_both(devices: list[str]) -> None:
    result = between(VRAM | {"rdma_devices": devices}, VRAM | {"boot_id": "boot-2"})
    assert result.outcome is Outcome.WARN
    assert "different machines" in result.text
