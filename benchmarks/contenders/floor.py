# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the hardware and NIXL allow at best.

`bare WRITE`: the embedding lies in registered memory already and stays where it lands; one
prepared NIXL WRITE of as many blocks as ours would use, without staging and without assembly.
`memcpy`: one copy inside one process, by one thread, into memory that was used before.
`torch copy_`: the same copy by torch with as many threads as it chooses. Its threads wait for each
other at the end, which takes long on a busy machine.
"""

import asyncio
import ctypes
import threading
import time
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch
from nixl import nixl_agent, nixl_agent_config

from benchmarks.pair import HAND_OFF_DEADLINE_S, Channel, Failed, Receiver, Workload, Writer
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import blocks_for

BLOCK_SIZE: Final = Settings().block_size
ITEM_BYTES: Final = 2
POLL_S: Final = 0.0002
WARM_UP: Final = "warm-up"


class Blocks:
    """Registered memory for the longest embedding, and its block list for NIXL."""

    def __init__(self, workload: Workload) -> None:
        num_blocks = blocks_for(max(workload.tokens), BLOCK_SIZE)
        self.num_blocks = num_blocks
        self.rows = torch.zeros(num_blocks * BLOCK_SIZE, workload.hidden, dtype=torch.bfloat16)
        self.block_bytes = BLOCK_SIZE * workload.hidden * ITEM_BYTES

    def descriptors(self, address: int) -> np.ndarray:
        """Address, length and device of every block of a like tensor at `address`."""
        rows = np.zeros((self.num_blocks, 3), np.uint64)
        rows[:, 0] = np.uint64(address) + np.arange(self.num_blocks, dtype=np.uint64) * np.uint64(
            self.block_bytes
        )
        rows[:, 1] = self.block_bytes
        return rows


class BareReceiver(Receiver):
    """Waits for notifications in a thread that owns the agent."""

    async def start(self) -> None:
        self._blocks = Blocks(self.workload)
        self._agent = _make_agent(self._blocks)
        self._arrivals: asyncio.Queue[float] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._poll, daemon=True).start()

    async def answer(self, op: str, body: Any) -> Any:
        if op == "hello":
            return (
                self._agent.name,
                self._agent.get_agent_metadata(),
                self._blocks.rows.data_ptr(),
            )
        self.rows = self._blocks.rows[:body]
        return await self._arrivals.get()

    def _poll(self) -> None:
        while True:
            for notices in self._agent.get_new_notifs().values():
                for notice in notices:
                    now = time.monotonic()
                    if notice != WARM_UP.encode():
                        self._loop.call_soon_threadsafe(self._arrivals.put_nowait, now)
            time.sleep(POLL_S)


class BareWriter(Writer):
    """Writes from the event loop's thread, which does nothing else."""

    def __init__(self, workload: Workload, peer: Channel) -> None:
        super().__init__(workload, peer)
        self._blocks = Blocks(workload)
        self._agent = _make_agent(self._blocks)

    async def start(self, rows: torch.Tensor) -> None:
        self._blocks.rows[: len(rows)] = rows
        name, metadata, address = await self.peer.ask("hello")
        self._agent.add_remote_agent(metadata)
        here = self._blocks.descriptors(self._blocks.rows.data_ptr())
        there = self._blocks.descriptors(address)
        self._local = self._agent.prep_xfer_dlist("", here, "DRAM")
        self._remote = self._agent.prep_xfer_dlist(name, there, "DRAM")
        self._write(self._blocks.num_blocks, WARM_UP.encode())  # connects

    async def hand_off(self, rows: torch.Tensor) -> dict[str, float]:
        started = time.monotonic()
        self._write(blocks_for(len(rows), BLOCK_SIZE), b"written")
        arrived: float = await self.peer.ask("arrival", len(rows))
        return {"bare WRITE": arrived - started}

    def _write(self, num_blocks: int, notice: bytes) -> None:
        indices = np.arange(num_blocks, dtype=np.int32)
        handle = self._agent.make_prepped_xfer(
            "WRITE", self._local, indices, self._remote, indices, notice
        )
        deadline = time.monotonic() + HAND_OFF_DEADLINE_S
        state = self._agent.transfer(handle)
        while state == "PROC":
            if time.monotonic() > deadline:
                raise Failed("the WRITE did not end")  # its handle must not be released
            self._agent.get_new_notifs()
            state = self._agent.check_xfer_state(handle)
        handle.release()


class CopyWriter(Writer):
    """The same copy twice, by the C library and by torch."""

    async def start(self, rows: torch.Tensor) -> None:
        self._target = torch.zeros_like(rows)

    async def hand_off(self, rows: torch.Tensor) -> dict[str, float]:
        started = time.monotonic()
        ctypes.memmove(self._target.data_ptr(), rows.data_ptr(), rows.nbytes)
        moved = time.monotonic()
        self._target[: len(rows)].copy_(rows)
        return {"memcpy": moved - started, "torch copy_": time.monotonic() - moved}


def _make_agent(blocks: Blocks) -> Any:
    agent = nixl_agent(f"bench-{uuid4().hex}", nixl_agent_config(enable_prog_thread=False))
    agent.register_memory(blocks.rows)
    return agent
