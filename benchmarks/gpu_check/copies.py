# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Rows into blocks and out of them, for every place of a pool and of rows."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks.gpu_check.cases import (
    LAYOUT,
    Figure,
    Skipped,
    pool_devices,
    require,
    rows_of,
    same_bits,
    speed,
)
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

NUM_BLOCKS = 64
SIZES = (1, LAYOUT.block_size, 1000, 4096)
REPEATS = 7


def section(device: torch.device) -> Iterator[Figure]:
    for pool, rows in itertools.product(pool_devices(device), pool_devices(device)):
        memory = a_memory(pool, device)
        for num_tokens in SIZES:
            sent = rows_of(num_tokens, num_tokens).to(rows)
            for blocks in (_adjacent(num_tokens), _scattered(num_tokens)):
                _check(memory, sent, blocks)
        where = f"rows on {rows}, pool on {pool}"
        for name, blocks in (("", _adjacent(SIZES[-1])), (", scattered", _scattered(SIZES[-1]))):
            seconds = _median(partial(_scatter, memory, sent, blocks))
            yield Figure(f"{where}{name}", speed(sent.nbytes, seconds))
    for pool in pool_devices(device):
        memory = a_memory(pool, device)
        first = _once(partial(memory.empty_rows, SIZES[-1]))
        yield Figure(f"new memory beside a pool on {pool}", f"{1e3 * first:8.3f} ms")
        found = memory.empty_rows(SIZES[-1])
        seconds = _median(partial(memory.gather, _scattered(SIZES[-1]), found))
        yield Figure(f"gathered from {pool}, scattered", speed(found.nbytes, seconds))


def busy(device: torch.device) -> Iterator[Figure]:
    """A chunk while kernels fill the GPU: how late, and is it right?"""
    if device.type == "cpu":
        raise Skipped("a CPU has no streams")
    matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    memory, blocks = a_memory(device, device), _adjacent(2048)
    sent = rows_of(3, 2048)
    on_gpu = sent.to(device)
    memory.scatter(on_gpu, blocks).wait()
    times: dict[str, list[float]] = {"idle": [], "beside kernels": []}
    for _ in range(REPEATS):
        for name, samples in times.items():
            torch.cuda.synchronize(device)
            for _ in range(6 * (name != "idle")):
                matrix @ matrix
            samples.append(_once(partial(_scatter, memory, on_gpu, blocks)))
    torch.cuda.synchronize(device)
    require(same_bits(_in_blocks(memory, blocks, 2048), sent), "a copy beside kernels is wrong")
    for name, samples in times.items():
        yield Figure(f"2,048 tokens, {name}", speed(sent.nbytes, statistics.median(samples)))


def a_memory(pool: torch.device, device: torch.device) -> PoolMemory:
    """As an encode worker on `device` has it."""
    rows_on = device if device.type == "cuda" else None
    return PoolMemory(LAYOUT, NUM_BLOCKS, pool, max_kept=2**30, rows_on=rows_on)


def _scatter(memory: PoolMemory, rows: torch.Tensor, blocks: Sequence[int]) -> None:
    memory.scatter(rows, blocks).wait()


def _check(memory: PoolMemory, rows: torch.Tensor, blocks: Sequence[int]) -> None:
    """Scattered, each row is where it belongs, and the rest as it was; gathered, it is back."""
    memory.tensor.view(torch.int16).fill_(77)
    _synchronize()  # what fills the pool, and makes the rows, is in streams of others
    memory.scatter(rows, blocks).wait()
    case = f"{len(rows)} rows on {rows.device} in blocks {blocks} of a pool on {memory.device}"
    require(same_bits(_in_blocks(memory, blocks, len(rows)), rows), f"scatter: {case}")
    others = [block for block in range(memory.num_blocks) if block not in set(blocks)]
    untouched = memory.tensor[others].view(torch.int16)
    require(bool((untouched == 77).all()), f"scatter wrote elsewhere: {case}")
    found = memory.empty_rows(len(rows))
    memory.gather(blocks, found)
    require(same_bits(found, rows), f"gather: {case}")


def _in_blocks(memory: PoolMemory, blocks: Sequence[int], num_tokens: int) -> torch.Tensor:
    return torch.cat([memory.tensor[block] for block in blocks])[:num_tokens]


def _synchronize() -> None:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)


def _adjacent(num_tokens: int) -> list[int]:
    return list(range(5, 5 + LAYOUT.blocks_for(num_tokens)))


def _scattered(num_tokens: int) -> list[int]:
    """No two of them adjacent."""
    return [(7 + 5 * number) % NUM_BLOCKS for number in range(LAYOUT.blocks_for(num_tokens))]


def _once(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median(work: Callable[[], object]) -> float:
    return statistics.median(_once(work) for _ in range(REPEATS))
