# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/gpus.py` and what follows from it: where a pool goes, and on which GPU threads work."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.workers import gpus, pool, sglang_encoder, towers
from dynamo.sglang_mm_resume.workers.sglang_engine import keep_features_on_host
from dynamo.sglang_mm_resume.workers.status import rdma_files
from tests.support.fake_gpu import Driver, GpuTensor, pool_on_gpu, use_driver

LAYOUT = Layout(model="m", width=8, dtype="float32", block_size=4)
CUDA = Settings(pool_device="cuda", pool_buffers=1)


def server_args(**changes: Any) -> SimpleNamespace:
    known = {
        "device": "cuda",
        "base_gpu_id": 4,
        "gpu_id_step": 1,
        "tp_size": 2,
        "pp_size": 1,
        "dp_size": 1,
        "nnodes": 1,
        "enable_dp_attention": False,
    }
    return SimpleNamespace(**known | changes)


@pytest.fixture
def a_gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


# --- Which GPUs ---


@pytest.mark.usefixtures("a_gpu_machine")
@pytest.mark.parametrize(
    ("changes", "indices"),
    [
        ({}, [4, 5]),
        ({"gpu_id_step": 2}, [4, 6]),
        ({"dp_size": 2}, [4, 5, 6, 7]),
        ({"dp_size": 2, "enable_dp_attention": True}, [4, 5]),
        ({"tp_size": 8, "nnodes": 2}, [4, 5, 6, 7]),
        ({"tp_size": 1, "pp_size": 2}, [4, 5]),
        ({"device": "cpu"}, []),
    ],
)
def test_an_engine_has_its_own_gpus(changes: dict[str, Any], indices: list[int]) -> None:
    assert list(gpus.gpus_of_engine(server_args(**changes))) == indices


@pytest.mark.usefixtures("a_gpu_machine")
def test_towers_lie_one_after_the_other() -> None:
    assert gpus.gpus_of_towers(server_args(dp_size=2, gpu_id_step=2)) == range(4, 8)


def test_without_a_gpu_there_are_none() -> None:
    assert gpus.gpus_of_engine(server_args()) == range(0)


# --- Where the pool goes ---


@pytest.mark.parametrize(
    ("name", "own", "rdma", "device"),
    [
        ("auto", range(4, 6), True, "cuda:4"),
        ("auto", range(4, 6), False, "cpu"),
        ("auto", range(0), True, "cpu"),
        ("cpu", range(4, 6), True, "cpu"),
        ("cuda", range(4, 6), False, "cuda:4"),
        ("cuda:5", range(4, 6), False, "cuda:5"),
    ],
)
def test_a_pool_goes_to_a_gpu_of_its_worker(name: str, own: range, rdma: bool, device: str) -> None:
    assert gpus.pool_device(name, own, rdma) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "own", "says"),
    [
        ("cuda:0", range(4, 6), "take cuda:4, cuda:5, or auto"),
        ("cuda", range(0), "this worker has no GPU"),
        ("cuda:0", range(0), "this worker has no GPU"),
    ],
)
def test_a_gpu_of_somebody_else_is_refused(name: str, own: range, says: str) -> None:
    with pytest.raises(BadArgument, match=rf"--mm-resume-pool-device .*{name}.*{says}"):
        gpus.pool_device(name, own, has_rdma=True)


def test_rdma_is_there_where_its_files_are(tmp_path: Path) -> None:
    assert rdma_files(tmp_path / "absent") == rdma_files(tmp_path) == []
    (tmp_path / "uverbs0").touch()
    assert rdma_files(tmp_path) == ["uverbs0"]


@pytest.mark.parametrize(
    ("capable", "rdma", "refused"),
    [(1, False, False), (0, True, False), (0, False, True)],
)
def test_a_pool_that_no_peer_reaches_is_refused(
    capable: int, rdma: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_driver(monkeypatch, Driver()).ipc_capable = capable
    pool_on_gpu(monkeypatch)
    monkeypatch.setattr(pool, "rdma_files", lambda: ["uverbs0"] if rdma else [])
    if refused:
        with pytest.raises(BadArgument, match="--mm-resume-pool-device cpu"):
            pool.make_pool(CUDA, LAYOUT, None, range(1, 2))
        return
    assert pool.make_pool(CUDA, LAYOUT, None, range(1, 2)).memory.device.index == 1


def test_only_who_has_rows_on_a_gpu_pins_a_pool_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, Driver())
    settings = Settings(pool_device="cpu", pool_buffers=1)

    def memory(**options: bool) -> PoolMemory:
        return pool.make_pool(settings, LAYOUT, None, range(1, 2), **options).memory

    assert memory(rows_on_gpu=True).pinned
    assert memory().pinned is None  # a prefill worker's process has no need of a CUDA context


# --- On which GPU threads work ---


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The device that each thread has chosen, by its name."""
    chosen: dict[str, int] = {}

    def set_device(index: int) -> None:
        chosen[threading.current_thread().name] = index

    module = SimpleNamespace(set_device=set_device)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    return chosen


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[sglang_encoder.VisionEncoder]:
    """SGLang's part stands in, as it is on the third GPU of this process."""
    mm_encoder = SimpleNamespace(
        device="cuda",
        gpu_id=2,
        model=SimpleNamespace(),
        server_args=server_args(),
        preprocessor=SimpleNamespace(preproc_executor=None),
    )
    monkeypatch.setattr(sglang_encoder, "_make_encoder", lambda *_: mm_encoder)
    for name in ("SGLANG_ENCODER_MM_LOAD_WORKERS", "SGLANG_ENCODER_PREPROC_WORKERS"):
        monkeypatch.setitem(os.environ, name, "2")  # it sets them
    made = sglang_encoder.VisionEncoder(server_args(tp_size=1), num_threads=2)
    yield made
    made.close()


def test_every_thread_that_meets_the_tower_is_on_its_gpu(
    encoder: sglang_encoder.VisionEncoder, used: dict[str, int]
) -> None:
    executors: list[ThreadPoolExecutor] = [
        encoder._tower,
        encoder._videos,
        encoder._encoder.preprocessor.preproc_executor,
    ]
    for executor in executors:
        executor.submit(int).result(10.0)
    assert used == {"vision-tower_0": 2, "video_0": 2, "preprocess_0": 2}


# --- What goes to other ranks, and what SGLang would take ---


class _Feature(GpuTensor):
    """On a GPU, with a copy on the host."""

    def cpu(self) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


def test_work_for_other_ranks_travels_in_host_memory() -> None:
    feature = torch.arange(4.0)
    items = [{"feature": feature.as_subclass(_Feature), "grid": feature}]
    name, (item,) = pickle.loads(towers.packed(("get_image_feature", items)))
    assert name == "get_image_feature"
    assert type(item["feature"]) is type(item["grid"]) is torch.Tensor
    assert torch.equal(item["feature"], feature) and torch.equal(item["grid"], feature)


@pytest.mark.parametrize(
    ("given", "legacy", "becomes"),
    [(None, None, "cpu"), ("cuda_ipc", None, "cuda_ipc"), (None, "1", None)],
)
def test_features_stay_on_the_host_unless_the_user_says_otherwise(
    given: str | None, legacy: str | None, becomes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.server_args import ServerArgs

    if legacy is not None:
        monkeypatch.setenv("SGLANG_USE_CUDA_IPC_TRANSPORT", legacy)
    arguments = ServerArgs(model_path="m", mm_feature_transport=given)
    keep_features_on_host(arguments)
    assert arguments.mm_feature_transport == becomes
