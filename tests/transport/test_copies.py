# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Copies with a GPU on one side, or both, as far as a machine without one can tell.

The GPU is tests/support/fake_gpu.py: its memory ends whoever touches it, and its streams stand
still until they are told to go on. benchmarks/gpu_check does the same on a real one.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from contextlib import nullcontext

import pytest
import torch

from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.messages import Sized
from dynamo.sglang_mm_resume.transport import cuda, nixl_agent
from dynamo.sglang_mm_resume.transport.copies import DONE
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import BUSY_POLL_S, PeerLost, Write
from tests.support import fake_gpu
from tests.support.fake_gpu import Driver, Stream, pool_on_gpu, read, rows_on_gpu, use_driver
from tests.transport.pair import (
    BLOCK_SIZE,
    DEADLINE_S,
    LAYOUT,
    ReceivingSide,
    WritingSide,
    a_pair,
    rows_of,
    same_bits,
)
from tests.transport.processes import until

gpu = fake_gpu.gpu
driver = fake_gpu.driver

ON_GPU = torch.device("cuda", 1)
ON_HOST = torch.device("cpu")
NUM_TOKENS = 3 * BLOCK_SIZE - 5
#: Out of order, and in two runs.
BLOCKS = (5, 2, 3)


def memory_on(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> PoolMemory:
    pool_on_gpu(monkeypatch)
    return PoolMemory(LAYOUT, 8, device, rows_on=ON_GPU)


def in_blocks(memory: PoolMemory, num_tokens: int = NUM_TOKENS) -> torch.Tensor:
    """The rows that lie in `BLOCKS`."""
    pool = read(memory.tensor)
    return torch.cat([pool[block] for block in BLOCKS])[:num_tokens]


def _scatter_from_a_gpu() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in (("Stream", Stream), ("stream", fake_gpu._stream)):
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch.cuda, "Event", fake_gpu.Event)
        patch.setattr(torch.cuda, "device", lambda device: nullcontext())
        use_driver(patch, Driver())
        memory_on(ON_HOST, patch).scatter(rows_on_gpu(rows_of(1, NUM_TOKENS)), BLOCKS)


def test_a_pool_on_the_host_takes_rows_of_a_gpu_without_touching_them() -> None:
    """In a process of its own: to touch them is SIGSEGV, exit code -11."""
    process = multiprocessing.get_context("spawn").Process(target=_scatter_from_a_gpu)
    process.start()
    process.join(60.0)
    assert process.exitcode == 0


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("pool", "rows_are"),
    [(ON_HOST, ON_GPU), (ON_GPU, ON_GPU), (ON_GPU, ON_HOST)],
    ids=["GPU to host", "GPU to GPU", "host to GPU"],
)
def test_a_copy_with_a_gpu_is_begun_and_done_later(
    pool: torch.device, rows_are: torch.device, gpu: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, rows = memory_on(pool, monkeypatch), rows_of(1, NUM_TOKENS)
    moved = rows if rows_are == ON_HOST else rows_on_gpu(rows)
    copy = memory.scatter(moved, BLOCKS)
    assert not copy.done and not copy.poll()
    assert not in_blocks(memory).any()
    (stream,) = gpu
    assert (stream.device, stream.priority) == (ON_GPU, -1)
    stream.go_on()
    assert not copy.done  # nobody has looked yet
    assert copy.poll() and copy.done
    assert same_bits(in_blocks(memory), rows)


@pytest.mark.usefixtures("driver")
async def test_a_gather_returns_when_the_rows_are_there(
    gpu: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, rows = memory_on(ON_GPU, monkeypatch), rows_of(1, NUM_TOKENS)
    memory.scatter(rows, BLOCKS)
    gpu[0].go_on()
    found = memory.empty_rows(NUM_TOKENS)
    gathering = asyncio.ensure_future(asyncio.to_thread(memory.gather, BLOCKS, found))
    await until(lambda: gpu[0].num_put > gpu[0].num_done)
    await asyncio.sleep(0.01)
    assert not gathering.done()
    gpu[0].go_on()
    await asyncio.wait_for(gathering, DEADLINE_S)
    assert same_bits(found, rows)


def test_host_copies_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_without_gpu().scatter(rows_of(1, NUM_TOKENS), BLOCKS) is DONE


def memory_without_gpu() -> PoolMemory:
    return PoolMemory(LAYOUT, 8, ON_HOST)


# --- The driver ---


def test_a_host_pool_is_pinned_for_the_gpu_that_rows_come_from(driver: Driver) -> None:
    assert memory_without_gpu().pinned is None
    assert driver.calls == []
    memory = PoolMemory(LAYOUT, 8, ON_HOST, rows_on=ON_GPU)
    assert memory.pinned is True
    ((address, num_bytes, _),) = driver.called("cuMemHostRegister_v2")
    assert (address, num_bytes) == (memory.tensor.data_ptr(), memory.num_bytes)


def test_a_host_pool_that_cannot_be_pinned_serves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_driver(monkeypatch, Driver(cuMemHostRegister_v2=712))
    assert PoolMemory(LAYOUT, 8, ON_HOST, rows_on=ON_GPU).pinned is False
    assert "cannot be pinned for the GPU: cuMemHostRegister_v2: CUDA error 712" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_rows_of_a_pool_on_a_gpu_are_pinned_and_bounded(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is pinned once, however often it is used; what is not kept is given back."""
    pool_on_gpu(monkeypatch)
    num_tokens = 2**20 // LAYOUT.token_bytes + 1
    one = num_tokens * LAYOUT.token_bytes
    memory = PoolMemory(LAYOUT, 8, ON_GPU, max_kept=2 * one)
    for _ in range(5):
        memory.empty_rows(num_tokens)
    assert len(driver.called("cuMemHostRegister_v2")) == 1
    several = [memory.empty_rows(num_tokens) for _ in range(4)]
    assert len(driver.called("cuMemHostRegister_v2")) == 4
    del several
    pinned = {address for address, *_ in driver.called("cuMemHostRegister_v2")}
    unpinned = {address for (address,) in driver.called("cuMemHostUnregister")}
    assert len(unpinned) == 2 and unpinned < pinned


@pytest.mark.parametrize("capable", [True, False])
def test_whether_memory_can_be_shared_is_asked_of_the_driver(capable: bool, driver: Driver) -> None:
    driver.ipc_capable = int(capable)
    tensor = rows_on_gpu(rows_of(1, 1))
    assert cuda.is_ipc_capable(tensor) is capable
    ((_, attribute, address),) = driver.called("cuPointerGetAttribute")
    assert (attribute, address) == (10, tensor.data_ptr())


def test_an_error_of_the_driver_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, Driver(cuMemAlloc_v2=2))
    with pytest.raises(cuda.CudaError, match="cuMemAlloc_v2: CUDA error 2"):
        cuda.allocate(2**40, ON_GPU)


# --- NIXL's thread ---


def write_of(writing: WritingSide, seed: int, block: int, valid_s: float = DEADLINE_S) -> Write:
    """One block from the GPU."""
    rows = rows_on_gpu(rows_of(seed, BLOCK_SIZE))
    deadline = time.monotonic() + valid_s
    return Write([block], [block], b"", deadline, lambda: writing.memory.scatter(rows, [block]))


async def begun(
    writing: WritingSide, receiving: ReceivingSide, write: Write
) -> asyncio.Future[float]:
    """The write, once its copy is under way."""
    running = asyncio.ensure_future(writing.agent.write(receiving.agent.name, write))
    await until(lambda: bool(writing.agent._loads))
    return running


async def test_nothing_waits_in_the_thread_for_a_copy(gpu: list[Stream]) -> None:
    """Other writes, and other peers' notices, go on while a GPU is busy."""
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0))
        in_time = time.monotonic() + DEADLINE_S
        writing.memory.tensor[1].fill_(2.0)
        other = writing.agent.write(receiving.agent.name, Write([1], [1], b"", in_time))
        await asyncio.wait_for(other, DEADLINE_S)
        assert bool((receiving.memory.tensor[1] == 2.0).all())
        assert not waiting.done()
        assert not receiving.memory.tensor[0].any()
        gpu[0].go_on()
        await asyncio.wait_for(waiting, DEADLINE_S)
        assert same_bits(receiving.memory.tensor[0], rows_of(1, BLOCK_SIZE))


@pytest.mark.parametrize(("spin_s", "interval"), [(60.0, 0.0), (0.0, BUSY_POLL_S)])
async def test_a_copy_is_asked_for_without_a_sleep_at_first(
    spin_s: float, interval: float, gpu: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nixl_agent, "SPIN_S", spin_s)
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0))
        assert writing.agent._poll_interval() == interval
        gpu[0].go_on()
        await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_grant_that_expires_during_its_copy_ends_after_the_copy(gpu: list[Stream]) -> None:
    """R8; and R6: until then, the copy may still write into our blocks."""
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0, valid_s=0.02))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        gpu[0].go_on()
        with pytest.raises(TransferFailed, match="expired"):
            await asyncio.wait_for(waiting, DEADLINE_S)
        assert not receiving.memory.tensor[0].any()


async def test_a_fault_of_the_gpu_reaches_its_caller_and_nobody_else(gpu: list[Stream]) -> None:
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0))
        gpu[0].fault = RuntimeError("CUDA error: an illegal memory access")
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await asyncio.wait_for(waiting, DEADLINE_S)
        in_time = time.monotonic() + DEADLINE_S
        other = writing.agent.write(receiving.agent.name, Write([1], [1], b"", in_time))
        await asyncio.wait_for(other, DEADLINE_S)


async def test_a_peer_that_leaves_during_a_copy_is_lost(gpu: list[Stream]) -> None:
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0))
        await writing.agent.disconnect(receiving.agent.name)
        gpu[0].go_on()
        with pytest.raises(PeerLost, match="is not connected"):
            await asyncio.wait_for(waiting, DEADLINE_S)


async def test_a_stop_waits_for_copies(gpu: list[Stream]) -> None:
    async with a_pair(4, 4, 2) as (receiving, writing):
        waiting = await begun(writing, receiving, write_of(writing, 1, 0))
        stopping = asyncio.ensure_future(writing.agent.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        gpu[0].go_on()
        await asyncio.wait_for(stopping, DEADLINE_S)
        await asyncio.wait_for(waiting, DEADLINE_S)


# --- Embeddings that stay in the pool ---


async def test_an_embedding_is_found_by_others_when_its_last_copy_is_done(
    gpu: list[Stream],
) -> None:
    """The chunk that was copied last may end last, too."""
    async with a_pair(4, 4, 2) as (_, writing):
        rows = rows_on_gpu(rows_of(1, 2 * BLOCK_SIZE))
        sized = Sized(total_tokens=len(rows), grid=(1, 2, 2), content_hash="0" * 16)
        stored = writing.writer.store("key", sized, rows)
        assert stored is not None
        closed, in_time = asyncio.Event(), time.monotonic() + DEADLINE_S
        async with stored.lend(BLOCK_SIZE, BLOCK_SIZE, closed, in_time) as second:
            async with stored.lend(0, BLOCK_SIZE, closed, in_time) as first:
                first_copy = first.load()
                gpu[0].go_on()
                assert first_copy.poll()
                last = second.load()
                assert second.load() is last, "who comes later waits for the same copy"
            assert writing.writer.find("key") is None
            gpu[0].go_on()
            assert last.poll()
        found = writing.writer.find("key")
        assert found is not None
        for user in (found, stored):
            user.unpin()
