# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The two processes between which transports are tried.

Pool, agent and writes are the workers' own. transports.py starts each with the UCX settings that
are to be tried, and talks to it through a pipe: the receiver sends its `Welcome`, the writer what
it has measured, the receiver at last whether the bytes are there.
"""

import asyncio
import time
from multiprocessing.connection import Connection
from typing import Any, Final
from uuid import uuid4

import torch

from dynamo.sglang_mm_resume.core.errors import ProtocolError
from dynamo.sglang_mm_resume.core.layout import MAX_CHUNK_BLOCKS, Layout
from dynamo.sglang_mm_resume.core.messages import PREFILL_REPLY, Welcome, dump, parse
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, Write
from dynamo.sglang_mm_resume.workers.status import rdma_sent, tcp_sent

#: Rows of Qwen2.5-VL-7B in the default block size: a write has 14 MiB.
_LAYOUT: Final = Layout(model="doctor", width=3584, dtype="bfloat16", block_size=128)
_BLOCKS: Final = range(MAX_CHUNK_BLOCKS)
_WRITES: Final = 8
_PATTERN: Final = 0.5
#: Seconds in which a write may be posted; the parent ends both processes long before.
_VALID_S: Final = 600.0

Message = dict[str, Any]


async def receive(connection: Connection, device: str) -> None:
    """The side that is written into."""
    memory, agent = await _begin(device, 0.0)
    agent.expect(+1)
    welcome = Welcome(
        layout=_LAYOUT,
        agent=agent.name,
        metadata=agent.metadata,
        base_address=memory.tensor.data_ptr(),
        num_blocks=memory.num_blocks,
        memory=agent.memory_kind,
        device_id=agent.device_id,
    )
    connection.send(dump(welcome))
    await _message(connection)  # the writer is done
    connection.send({"arrived": bool((memory.tensor == _PATTERN).all())})
    await agent.stop()


async def write(connection: Connection, device: str) -> None:
    """The side that writes, and measures."""
    memory, agent = await _begin(device, _PATTERN)
    welcome = parse(PREFILL_REPLY, await _message(connection))
    if not isinstance(welcome, Welcome):
        raise ProtocolError(f"the side that receives began with {welcome!r}")
    await agent.connect(welcome)
    await _write(agent, welcome)  # the first one connects
    tcp_before, rdma_before, started = tcp_sent(), rdma_sent(), time.monotonic()
    for _ in range(_WRITES):
        await _write(agent, welcome)
    connection.send(
        {
            "bytes": _WRITES * memory.num_bytes,
            "seconds": time.monotonic() - started,
            "memory": agent.memory_kind,
            "tcp": (tcp_before, tcp_sent()),
            "rdma": (rdma_before, rdma_sent()),
        }
    )
    await _message(connection)
    await agent.stop()


async def _begin(device: str, content: float) -> tuple[PoolMemory, NixlAgent]:
    memory = PoolMemory(_LAYOUT, len(_BLOCKS), torch.device(device))
    memory.tensor.fill_(content)
    if memory.device.type == "cuda":  # NIXL knows nothing of torch's streams
        torch.cuda.synchronize(memory.device)
    agent = NixlAgent(f"doctor-{uuid4().hex}", memory, lambda peer, payload: None)
    await agent.start()
    return memory, agent


async def _write(agent: NixlAgent, welcome: Welcome) -> None:
    deadline = time.monotonic() + _VALID_S
    await agent.write(welcome.agent, Write(_BLOCKS, _BLOCKS, b"doctor", deadline))


async def _message(connection: Connection) -> Any:
    """What the parent says next; raises EOFError once it is gone."""
    return await asyncio.get_running_loop().run_in_executor(None, connection.recv)
