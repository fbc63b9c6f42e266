# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""NIXL WRITE from one process into another, for every place of either pool.

The writer's rows are where its tower would have them, and go through `PoolMemory.scatter` and
`NixlAgent.write` as a worker's; the receiver gathers every chunk at its notice, and compares it.
"""

import asyncio
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Final
from uuid import uuid4

import torch

from benchmarks.gpu_check.cases import (
    LAYOUT,
    Failed,
    Figure,
    pool_devices,
    require,
    rows_of,
    same_bits,
    speed,
)
from dynamo.sglang_mm_resume.core.layout import MAX_CHUNK_BLOCKS
from dynamo.sglang_mm_resume.core.messages import PREFILL_REPLY, Welcome, dump, parse
from dynamo.sglang_mm_resume.doctor.carrier import Carrier, carrier, difference
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, Write
from dynamo.sglang_mm_resume.workers.status import rdma_sent, tcp_sent

#: Of the largest kind: 2,048 tokens, 14 MiB. The first one connects, and is not measured.
SINGLE, TOGETHER = 5, 4
NUM_CHUNKS: Final = SINGLE + TOGETHER
NUM_BLOCKS: Final = NUM_CHUNKS * MAX_CHUNK_BLOCKS
NUM_TOKENS: Final = MAX_CHUNK_BLOCKS * LAYOUT.block_size
#: Seconds for two processes with one kind of pool each.
LIMIT_S: Final = 90.0

Main = Callable[[Connection, torch.device, torch.device], Coroutine[Any, Any, None]]


def section(device: torch.device) -> Iterator[Figure]:
    for source, target in itertools.product(pool_devices(device), pool_devices(device)):
        found = _measure(source, target, device)
        where = f"pool on {source} to pool on {target}"
        require(found["wrong"] == [], f"{where}: chunks {found['wrong']} are not what was sent")
        size = NUM_TOKENS * LAYOUT.token_bytes
        used = Carrier(found["used"])
        yield Figure(f"{where}, a chunk", f"{speed(size, found['single'])} over {used}")
        yield Figure(f"{where}, {TOGETHER} at once", speed(TOGETHER * size, found["together"]))
        both_on_gpu = source.type == target.type == "cuda"
        require(
            not both_on_gpu or used is not Carrier.TCP,
            f"{where}: went over tcp, not cuda_ipc: PID namespaces, or UCX_TLS?",
        )


def chunk_blocks(number: int) -> list[int]:
    """Those of a chunk, in either pool: no two adjacent, nobody else's."""
    return [number + NUM_CHUNKS * block for block in range(MAX_CHUNK_BLOCKS)]


def _measure(source: torch.device, target: torch.device, device: torch.device) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    with (
        _process(receive, target, device) as receiver,
        _process(send, source, device) as writer,
    ):
        writer.send(_hear(receiver, deadline))
        measured = _hear(writer, deadline)
        judged = _hear(receiver, deadline)
        return {**measured, **judged}


async def receive(connection: Connection, pool: torch.device, device: torch.device) -> None:
    """The side that is written into; says which chunks were wrong once all are there."""
    loop = asyncio.get_running_loop()
    notices: asyncio.Queue[int] = asyncio.Queue()
    memory = PoolMemory(LAYOUT, NUM_BLOCKS, pool, max_kept=2**30)
    agent = NixlAgent(f"receiver-{uuid4().hex}", memory, lambda _, n: notices.put_nowait(int(n)))
    await agent.start()
    agent.expect(+1)
    welcome = Welcome(
        layout=LAYOUT,
        agent=agent.name,
        metadata=agent.metadata,
        base_address=memory.tensor.data_ptr(),
        num_blocks=NUM_BLOCKS,
        memory=agent.memory_kind,
        device_id=agent.device_id,
    )
    connection.send(dump(welcome))
    wrong = []
    for _ in range(NUM_CHUNKS):
        number = await notices.get()
        found = memory.empty_rows(NUM_TOKENS)
        await loop.run_in_executor(None, memory.gather, chunk_blocks(number), found)
        if not same_bits(found, rows_of(number, NUM_TOKENS)):
            wrong.append(number)
    connection.send({"wrong": sorted(wrong)})
    await _stay(connection)
    await agent.stop()


async def send(connection: Connection, pool: torch.device, device: torch.device) -> None:
    """The side that writes: chunks one by one, then some together. Seconds are copies included."""
    rows_on = device if device.type == "cuda" else None
    memory = PoolMemory(LAYOUT, NUM_BLOCKS, pool, rows_on=rows_on)
    agent = NixlAgent(f"writer-{uuid4().hex}", memory, lambda peer, payload: None)
    await agent.start()
    rows = [rows_of(number, NUM_TOKENS).to(device) for number in range(NUM_CHUNKS)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # as a tower's rows are when they are handed on
    welcome = parse(PREFILL_REPLY, await asyncio.to_thread(connection.recv))
    assert isinstance(welcome, Welcome)
    await agent.connect(welcome)

    async def write(number: int) -> float:
        began, blocks = time.monotonic(), chunk_blocks(number)
        load = partial(memory.scatter, rows[number], blocks)
        deadline = began + LIMIT_S
        await agent.write(
            welcome.agent, Write(blocks, blocks, str(number).encode(), deadline, load)
        )
        return time.monotonic() - began

    await write(0)
    tcp_before, rdma_before = tcp_sent(), rdma_sent()
    singly = [await write(number) for number in range(1, SINGLE)]
    began = time.monotonic()
    await asyncio.gather(*(write(number) for number in range(SINGLE, NUM_CHUNKS)))
    together = time.monotonic() - began
    used = carrier(
        (NUM_CHUNKS - 1) * NUM_TOKENS * LAYOUT.token_bytes,
        difference(tcp_sent(), tcp_before),
        difference(rdma_sent(), rdma_before),
        one_machine=True,
        memories=(agent.memory_kind, welcome.memory),
    )
    single = statistics.median(singly)
    connection.send({"single": single, "together": together, "used": used.value})
    await _stay(connection)
    await agent.stop()


async def _stay(connection: Connection) -> None:
    """Until the parent has what it wants: a write ends while both sides poll."""
    with suppress(EOFError):
        await asyncio.to_thread(connection.recv)


@contextmanager
def _process(main: Main, pool: torch.device, device: torch.device) -> Iterator[Connection]:
    """Started afresh, so that UCX and CUDA are; told to end, and killed if it does not."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(main, theirs, pool, device), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        ours.send({})
        process.join(10.0)
    finally:
        process.kill()
        process.join()
        ours.close()


def _run(main: Main, connection: Connection, pool: torch.device, device: torch.device) -> None:
    try:
        asyncio.run(main(connection, pool, device))
    except Exception as error:
        connection.send({"error": f"{type(error).__name__}: {error!s:.500}"})
        raise


def _hear(connection: Connection, deadline: float) -> Any:
    """What it says next. Raises `Failed` for an error, an end or silence."""
    if not wait([connection], max(0.0, deadline - time.monotonic())):
        raise Failed(f"no answer within {LIMIT_S:g} s")
    try:
        message = connection.recv()
    except EOFError:
        raise Failed("a process ended without a word: its exit is above") from None
    if "error" in message:
        raise Failed(message["error"])
    return message
