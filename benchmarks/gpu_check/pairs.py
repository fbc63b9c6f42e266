# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Between two processes: WRITEs of our agent alone, and whole hand-offs with writer and assembler.

The processes are those of the doctor and of the benchmarks; this one only gives orders.
"""

import asyncio
import statistics
from collections.abc import Iterator
from typing import Final

from benchmarks.channel import Failed
from benchmarks.contenders import OURS
from benchmarks.gpu_check.rows import NO_GPU, Options, Row, failed, judged, skipped
from benchmarks.team import Team
from benchmarks.workload import Order, Setup, bytes_of
from dynamo.sglang_mm_resume.doctor.carrier import Carrier
from dynamo.sglang_mm_resume.doctor.transports import Trial, TrialFailed, try_out

#: GB/s that a hand-off between pools in VRAM must have at least. UCX's emulation over tcp, which
#: it takes without a word where cuda_ipc is missing, makes 0.3.
VRAM_GB_S: Final = 2.0
#: GB/s of bare WRITEs between two pools of one GPU.
CUDA_IPC_GB_S: Final = 20.0
TOKENS: Final = (200, 1024, 16384)
QUICK_TOKENS: Final = (200, 1024)


def writes(options: Options) -> Iterator[Row]:
    """WRITEs of our `NixlAgent`, and which transport UCX took for them."""
    found = try_out(Trial("host", None, "cpu"))
    if isinstance(found, TrialFailed):
        yield failed("WRITE, pools on cpu", str(found))
    else:
        figure = f"{found.num_bytes / found.seconds / 1e9:.2f} GB/s over {found.used}"
        yield judged("WRITE, pools on cpu", figure, "bytes arrive", True, "")
    name = f"WRITE, pools on {options.device if options.has_gpu else 'cuda'}"
    if not options.has_gpu:
        yield skipped(name, NO_GPU)
        return
    found = try_out(Trial("VRAM", None, options.device))
    if isinstance(found, TrialFailed):
        yield failed(name, str(found))
        return
    rate = found.num_bytes / found.seconds / 1e9
    yield judged(
        name,
        f"{rate:.2f} GB/s over {found.used}",
        f"{CUDA_IPC_GB_S:g} GB/s over {Carrier.CUDA_IPC}",
        found.used is Carrier.CUDA_IPC and rate >= CUDA_IPC_GB_S,
        "both processes must be in one PID namespace, and UCX_TLS must not leave cuda_ipc out",
    )


def hand_offs(options: Options) -> Iterator[Row]:
    """Rows on the device, through pools of either kind, bit for bit."""
    devices = ("cpu", options.device) if options.has_gpu else ("cpu",)
    for pool in devices:
        yield from asyncio.run(_hand_offs(options, pool))
    if not options.has_gpu:
        yield skipped("hand-offs, pools on cuda", NO_GPU)


async def _hand_offs(options: Options, pool: str) -> list[Row]:
    lengths = QUICK_TOKENS if options.quick else TOKENS
    rows: list[Row] = []
    team = Team(OURS)
    team.spawn()
    try:
        await team.open()
        await team.start(Setup(max(lengths), device=options.device, pool_device=pool))
        for tokens in lengths:
            rows.append(await _hand_off(team, options, pool, tokens))
    except Failed as error:
        rows.append(failed(f"hand-offs, pools on {pool}", str(error) or type(error).__name__))
    finally:
        await team.stop()
    return rows


async def _hand_off(team: Team, options: Options, pool: str, tokens: int) -> Row:
    """The first and the last of them are compared byte by byte. Raises `Failed`."""
    name = f"hand-off of {tokens:,} tokens, pools on {pool}, rows on {options.device}"
    seconds = []
    repeats = 5 if options.quick else 20
    for number in range(repeats):
        order = Order(tokens, verify=number in (0, repeats - 1))
        seconds.append((await team.hand_off(order)).seconds["ours"])
    median = statistics.median(seconds)
    rate = bytes_of(tokens, Setup(0).hidden) / median / 1e9
    figure = f"{1e3 * median:.2f} ms, {rate:.2f} GB/s"
    if pool == "cpu" or tokens < max(QUICK_TOKENS):
        return judged(name, figure, "every bit", True, "")
    target = f"every bit, {VRAM_GB_S:g} GB/s"
    return judged(name, figure, target, rate >= VRAM_GB_S, "UCX emulates WRITEs over tcp")
