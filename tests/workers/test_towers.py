# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/towers.py` with real processes that compute together over gloo."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import psutil
import pytest
from torch import distributed

from dynamo.sglang_mm_resume.workers import towers as tower_module
from dynamo.sglang_mm_resume.workers.lifecycle import WorkerLost
from dynamo.sglang_mm_resume.workers.towers import Towers
from tests.support.ranks import UNUSABLE, Model, make_encoder
from tests.support.worker_status import wait_until

DEADLINE_S = 60.0


@contextmanager
def towers(tp_size: int, dp_size: int) -> Iterator[tuple[Towers, Model]]:
    """With their first rank, which this process has."""
    make = partial(make_encoder, tp_size)
    towers = Towers(make, tp_size, dp_size)
    try:
        model = make(towers.first).model
        towers.lead(model)
        yield towers, model
    finally:
        towers.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def children() -> list[psutil.Process]:
    def serves(process: psutil.Process) -> bool:
        try:
            return "spawn_main" in " ".join(process.cmdline())
        except psutil.ZombieProcess:
            return False

    return [process for process in psutil.Process().children() if serves(process)]


def test_one_process_needs_no_others() -> None:
    with towers(1, 1) as (_, model):
        assert children() == []
        assert model.get_image_feature([1.0, 2.0]).tolist() == [1.0, 2.0]


@pytest.mark.timeout(20)
def test_one_process_waits_for_nobody_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_module, "END_TIMEOUT_S", 600.0)
    with towers(1, 1):
        pass


def test_all_ranks_of_a_tower_compute_together() -> None:
    with towers(2, 1) as (_, model):
        assert len(children()) == 1
        for items in ([1.0, 2.0], [5.0]):
            assert model.get_image_feature(items).tolist() == [3 * item for item in items]
    assert wait_until(lambda: not children(), DEADLINE_S)


def test_several_towers_compute_at_the_same_time() -> None:
    """Each of two ranks; more threads than towers take turns."""
    with towers(2, 2) as (_, model), ThreadPoolExecutor(2) as threads:
        assert len(children()) == 3
        work = [[float(n), n + 0.5] for n in range(20)]
        for items, rows in zip(work, threads.map(model.get_image_feature, work), strict=True):
            assert rows.tolist() == [3 * item for item in items]


async def test_a_rank_that_ends_ends_the_worker() -> None:
    with towers(2, 1) as (several, model):
        assert model.get_image_feature([1.0]).tolist() == [3.0]
        lost = asyncio.ensure_future(several.lost())
        await asyncio.sleep(0)
        assert not lost.done()
        children()[0].kill()
        with pytest.raises(WorkerLost, match="has ended"):
            await asyncio.wait_for(lost, DEADLINE_S)


async def test_an_error_leaves_no_ranks_that_are_out_of_step() -> None:
    with towers(2, 1) as (several, model):
        with pytest.raises(RuntimeError, match="unusable"):
            model.get_image_feature([UNUSABLE])
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(several.lost(), DEADLINE_S)
