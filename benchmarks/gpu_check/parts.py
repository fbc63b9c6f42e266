# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The parts that need one process each. Each is called in a process of its own.

A part yields rows as it comes to them; what it raises becomes one.
"""

import gc
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from unittest import mock

import psutil
import torch

from benchmarks.gpu_check import under_test
from benchmarks.gpu_check.rows import NO_GPU, Options, Row, judged, skipped

MIB: Final = 2**20
#: Tokens of a chunk whose copy is timed: 14 MiB.
TIMED_TOKENS: Final = 2048
#: Milliseconds that a copy of `TIMED_TOKENS` may take while kernels fill the GPU.
BESIDE_COMPUTE_MS: Final = 2.0
#: Host memory that may stay beyond what is kept on purpose: malloc's, and torch's.
SLACK_MIB: Final = 48
KEPT_MIB: Final = 64


def copies(options: Options, pool: str, rows: str) -> Iterator[Row]:
    """Rows into blocks and back, with random orders, lengths and widths in every dtype."""
    name = f"copies, pool on {pool}, rows on {rows}"
    cases = 10 if options.quick else 200
    wrong = [
        f"{dtype}, case {seed}"
        for dtype in under_test.DTYPES
        for seed in range(cases)
        if not _round_trip(pool, rows, dtype, seed)
    ]
    figure = f"{cases * len(under_test.DTYPES)} cases, {_speed(pool, rows):.1f} GB/s"
    why = f"bytes are not as they were copied: {'; '.join(wrong[:3])}"
    yield judged(name, figure, "every bit", not wrong, why)


def _round_trip(pool: str, device: str, dtype: str, seed: int) -> bool:
    """Scatter writes the given rows and nothing else, and gather brings them back."""
    chance = random.Random(seed)
    width, block_size, num_blocks = chance.choice((8, 96, 3584)), chance.choice((1, 16)), 24
    memory = under_test.pool(pool, num_blocks, dtype, width, block_size)
    blocks = chance.sample(range(num_blocks), chance.randint(1, num_blocks))
    if chance.random() < 0.5:
        blocks.sort()  # long runs
    num_tokens = chance.randint(1, len(blocks) * block_size)
    before = _random((num_blocks * block_size, width), dtype, seed)
    sent = _random((num_tokens, width), dtype, seed + 10**6)
    memory.tensor.view(-1, width).copy_(before)
    _wait_for(pool)
    rows = _on(device, sent, chance)
    memory.scatter(rows, blocks).wait()
    expected = before.clone()
    for token in range(num_tokens):
        expected[blocks[token // block_size] * block_size + token % block_size] = sent[token]
    got = torch.empty_like(sent, device=device)
    memory.gather(blocks, got)
    return _same(memory.tensor.view(-1, width), expected) and _same(got, sent)


def _on(device: str, rows: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """The rows there, sometimes as every second row of a larger tensor."""
    found = rows.to(device)
    if chance.random() < 0.3:
        found = torch.stack((found, found), dim=1).flatten(0, 1)[::2]
    _wait_for(device)
    return found


def _speed(pool: str, device: str) -> float:
    """GB/s of a chunk into scattered blocks."""
    num_blocks = TIMED_TOKENS // under_test.BLOCK_SIZE
    memory = under_test.pool(pool, 2 * num_blocks)
    rows = torch.ones((TIMED_TOKENS, under_test.WIDTH), dtype=torch.bfloat16, device=device)
    _wait_for(device)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        memory.scatter(rows, range(0, 2 * num_blocks, 2)).wait()
        seconds.append(time.perf_counter() - began)
    return rows.nbytes / statistics.median(seconds[2:]) / 1e9


def current_devices(options: Options) -> Iterator[Row]:
    """Each thread that launches kernels has the device of `--base-gpu-id` as its current one."""
    name = f"threads, --base-gpu-id {options.base_gpu_id}"
    if not options.has_gpu:
        yield skipped(name, NO_GPU)
        return
    base = options.base_gpu_id
    found = under_test.device_of_auto(base)
    why = f"a worker on GPU {base} would have its pool on another"
    yield judged(
        f"pool of auto, --base-gpu-id {base}", str(found), f"cuda:{base}", found.index == base, why
    )
    real = 0 < base < torch.cuda.device_count()
    # With device 0, a thread that says nothing would be right by chance: look at what it says.
    wanted = base if real else base + 1
    try:
        with (
            mock.patch.object(torch.cuda, "set_device", _Asked(real)) as asked,
            under_test.encoder_threads(wanted) as threads,
        ):
            devices = {n: _current_device(pool, real, asked) for n, pool in threads.items()}
    except ImportError as error:
        yield skipped(name, f"SGLang is not installed: {error}")
        return
    for thread, device in devices.items():
        text = f"thread pool {thread}, --base-gpu-id {wanted}"
        why = "kernels of this thread would be launched on another GPU"
        yield judged(text, f"device {device}", f"device {wanted}", device == wanted, why)


class _Asked:
    """`torch.cuda.set_device` that remembers what it was asked for, by thread."""

    def __init__(self, carry_out: bool) -> None:
        self.by_thread: dict[str, int] = {}
        self._set_device = torch.cuda.set_device if carry_out else None

    def __call__(self, device: Any) -> None:
        place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        self.by_thread[threading.current_thread().name] = place.index or 0
        if self._set_device is not None:
            self._set_device(device)


def _current_device(threads: ThreadPoolExecutor, real: bool, asked: _Asked) -> int | None:
    if real:
        return threads.submit(torch.cuda.current_device).result()
    name = threads.submit(lambda: threading.current_thread().name).result()
    return asked.by_thread.get(name)


def not_here(options: Options, name: str) -> Iterator[Row]:
    """In place of a part that needs a GPU."""
    yield skipped(name, NO_GPU)


def legacy_ipc(options: Options) -> Iterator[Row]:
    """Whether another process may map the pool, also where torch's memory may not be mapped."""
    for setting in ("expandable_segments:False", "expandable_segments:True"):
        name = f"IPC of a pool, {setting}"
        if not options.has_gpu:
            yield skipped(name, NO_GPU)
            continue
        code = (
            f"from benchmarks.gpu_check import under_test as u; m = u.pool({options.device!r}, 4); "
            "print(u.is_ipc_capable(m.tensor))"
        )
        environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": setting}
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        said = (answer.stdout.split() or answer.stderr.splitlines() or ["nothing"])[-1]
        why = "UCX leaves cuda_ipc out without a word: 0.3 GB/s"
        yield judged(name, f"{said:.60}", "True", said == "True", why)


def beside_compute(options: Options) -> Iterator[Row]:
    """How long a chunk's copy takes while kernels fill the GPU."""
    if not options.has_gpu:
        yield skipped("copy beside a matmul", NO_GPU)
        return
    torch.cuda.set_device(options.device)
    num_blocks = TIMED_TOKENS // under_test.BLOCK_SIZE
    rows = torch.ones((TIMED_TOKENS, under_test.WIDTH), dtype=torch.bfloat16, device=options.device)
    large = torch.randn((8192, 8192), dtype=torch.bfloat16, device=options.device)
    for pool in ("cpu", options.device):
        memory = under_test.pool(pool, num_blocks)
        idle = statistics.median(_copy_ms(memory, rows, None) for _ in range(15))
        busy = statistics.median(_copy_ms(memory, rows, large) for _ in range(15))
        yield judged(
            f"copy of {rows.nbytes // MIB} MiB beside a matmul, pool on {pool}",
            f"{busy:.2f} ms (idle {idle:.2f})",
            f"at most {BESIDE_COMPUTE_MS:g} ms",
            busy <= BESIDE_COMPUTE_MS,
            "copies wait for the tower, or for host memory that is not pinned",
        )


def _copy_ms(memory: Any, rows: torch.Tensor, large: torch.Tensor | None) -> float:
    torch.cuda.synchronize()
    for _ in range(8 if large is not None else 0):
        large @ large
    began = time.perf_counter()
    memory.scatter(rows, range(memory.num_blocks)).wait()
    took = time.perf_counter() - began
    torch.cuda.synchronize()
    return 1e3 * took


def kept_memory(options: Options) -> Iterator[Row]:
    """Embeddings of many lengths come and go: no more host memory stays than is kept on purpose."""
    memory = under_test.pool(options.device, 8, max_kept=KEPT_MIB * MIB)
    lengths = (
        (1000, 2500, 4100, 6000, 9000, 12000)
        if options.quick
        else (1000, 2500, 4100, 9000, 17000, 33000)
    )
    for _ in range(2):  # what libraries load and keep at the first use is not counted
        memory.empty_rows(16).fill_(0)
    before = _host_bytes()
    largest = 0
    for tokens in lengths:
        embedding = memory.empty_rows(tokens)
        embedding.fill_(1)
        largest = max(largest, _grown(before))
        del embedding
    gc.collect()
    stays = _grown(before)
    bound = KEPT_MIB + SLACK_MIB
    yield judged(
        f"host memory of embeddings, pool on {options.device}",
        f"{stays // MIB} MiB stay, {largest // MIB} at most",
        f"at most {bound} MiB",
        stays <= bound * MIB,
        f"{KEPT_MIB} MiB may be kept (max_kept)",
    )


def pinned_pool(options: Options) -> Iterator[Row]:
    """Whether a pool in host memory may be pinned, so that copies to it run at the bus's speed."""
    name = "host memory may be pinned"
    if not options.has_gpu:
        yield skipped(name, NO_GPU)
        return
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    memory = under_test.pool("cpu", 64)
    torch.cuda.set_device(options.device)
    error = under_test.pin_error(memory.tensor)
    why = f"copies between host pools and GPUs are slow; ulimit -l is {limit}"
    yield judged(name, f"cudaHostRegister: {error}", "no error", not error, why)


# --- Helpers ---


def _random(shape: tuple[int, int], dtype: str, seed: int) -> torch.Tensor:
    """Bytes of all kinds, those that are no number among them."""
    generator = torch.Generator().manual_seed(seed)
    kind = under_test.DTYPES[dtype]
    size = (shape[0], shape[1] * kind.itemsize)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(kind)


def _same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Every byte: a NaN is not even equal to itself."""
    _wait_for(str(got.device))
    return torch.equal(got.cpu().view(torch.uint8), expected.view(torch.uint8))


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _host_bytes() -> tuple[int, int]:
    """Resident; and pinned by torch, which the kernel does not count as resident everywhere."""
    pinned = torch.cuda.host_memory_stats() if torch.cuda.is_initialized() else {}
    return psutil.Process().memory_info().rss, pinned.get("allocated_bytes.current", 0)


def _grown(before: tuple[int, int]) -> int:
    return max(now - then for now, then in zip(_host_bytes(), before, strict=True))
