# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the hardware and NIXL allow at best.

`bare WRITE`: the embedding lies in registered memory already and stays where it lands; one
prepared NIXL WRITE of as many blocks as ours would use, without staging and without assembly, out
of huge pages and into such. On each side one thread owns the agent, does nothing else, and looks at
the clock itself: no event loop takes part. The writer's thread polls without a pause, the
receiver's with pauses so short that it is as fast, and does not take a core from the writer.
`memcpy`: one copy inside one process, by one thread, into memory that was used before.
`torch copy_`: the same copy by torch with as many threads as it chooses. Its threads wait for each
other at the end, which takes long on a busy machine.
"""

import asyncio
import ctypes
import mmap
import queue
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import numpy as np
import torch
from nixl import nixl_agent, nixl_agent_config

from benchmarks.channel import Channel
from benchmarks.sides import Receiver, Writer, wait_until
from benchmarks.workload import ITEM_BYTES, SETTINGS, HandOff, Order, Setup
from dynamo.sglang_mm_resume.core.layout import blocks_for

#: Seconds between two looks of the receiver.
POLL_S: Final = 0.00005
#: `prctl` of Linux: nanoseconds by which a thread's sleeps may be prolonged.
_PR_SET_TIMERSLACK: Final = 29
WARM_UP: Final = "warm-up"


class Blocks:
    """Registered memory for a number of embeddings, each in blocks of its own."""

    def __init__(self, setup: Setup, num_embeddings: int) -> None:
        self.block_bytes = SETTINGS.block_size * setup.hidden * ITEM_BYTES
        self.per_embedding = blocks_for(setup.tokens, SETTINGS.block_size)
        self.num_blocks = num_embeddings * self.per_embedding
        rows = _in_huge_pages(self.num_blocks * self.block_bytes).to(setup.device)
        self.rows = rows.view(num_embeddings, -1, setup.hidden)
        self.memory = "VRAM" if self.rows.is_cuda else "DRAM"
        self.agent = nixl_agent(f"bench-{uuid4().hex}", nixl_agent_config(enable_prog_thread=False))
        self._registration = self.agent.register_memory(self.rows)

    def descriptors(self, address: int, num_blocks: int) -> np.ndarray:
        """Address, length and device of every block of a like tensor at `address`."""
        rows = np.zeros((num_blocks, 3), np.uint64)
        rows[:, 0] = np.uint64(address) + np.arange(num_blocks, dtype=np.uint64) * np.uint64(
            self.block_bytes
        )
        rows[:, 1] = self.block_bytes
        rows[:, 2] = self.rows.device.index or 0
        return rows

    def close(self) -> None:
        self.agent.deregister_memory(self._registration)
        del self.agent, self.rows


class BareReceiver(Receiver):
    """Waits for notifications in the thread that owns the agent."""

    async def start(self, setup: Setup) -> None:
        self._setup = setup
        self._blocks = Blocks(setup, setup.writers * setup.in_flight)
        self._arrivals: defaultdict[str, asyncio.Queue[float]] = defaultdict(asyncio.Queue)
        self._loop = asyncio.get_running_loop()
        agent = self._blocks.agent
        address = self._blocks.rows.data_ptr()
        self._welcome = agent.name, agent.get_agent_metadata(), address, self._blocks.num_blocks
        self._stopping = False
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    async def answer(self, op: str, body: Any) -> Any:
        if op == "hello":
            return self._welcome
        key, place, num_tokens = body
        self.rows[key] = self._blocks.rows[place, :num_tokens]
        return await self._arrivals[key].get()

    def release(self, key: str) -> None:
        super().release(key)
        self._arrivals.pop(key, None)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.to_thread(self._thread.join)
        self._blocks.close()

    def _poll(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
        while not self._stopping:
            for notices in self._blocks.agent.get_new_notifs().values():
                for notice in notices:
                    now = time.monotonic()
                    if notice != WARM_UP.encode():
                        self._loop.call_soon_threadsafe(self._arrived, notice.decode(), now)
            time.sleep(POLL_S)

    def _arrived(self, key: str, at: float) -> None:
        self._arrivals[key].put_nowait(at)


@dataclass(frozen=True, slots=True)
class _Flight:
    handle: Any
    began: float
    landed: Future[float]


NOTHING: Final = _Flight(None, 0.0, Future())


class BareWriter(Writer):
    """Writes from the thread that owns the agent."""

    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        self._setup = setup
        self._blocks = blocks = Blocks(setup, setup.in_flight)
        parts = rows.view(setup.in_flight, setup.tokens, setup.hidden)
        blocks.rows[:, : setup.tokens] = parts
        name, metadata, address, num_blocks = await self.peer.ask("hello")
        blocks.agent.add_remote_agent(metadata)
        here = blocks.descriptors(blocks.rows.data_ptr(), blocks.num_blocks)
        there = blocks.descriptors(address, num_blocks)
        self._local = blocks.agent.prep_xfer_dlist("", here, blocks.memory)
        self._remote = blocks.agent.prep_xfer_dlist(name, there, blocks.memory)
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        await self._write(0, SETTINGS.block_size, WARM_UP)  # connects

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        key = uuid4().hex
        await wait_until(order.at)
        began = await self._write(number, len(rows), key)
        place = self.index * self._setup.in_flight + number
        arrived: float = await self.peer.ask("arrival", (key, place, len(rows)))
        return HandOff(key, arrived, {"bare WRITE": arrived - began})

    async def stop(self) -> None:
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)
        self._local.release()
        self._remote.release()
        self._blocks.close()

    async def _write(self, number: int, num_tokens: int, notice: str) -> float:
        """When the thread began with it, in monotonic seconds. An error ends the thread."""
        landed: Future[float] = Future()
        self._orders.put((number, num_tokens, notice, landed))
        return await asyncio.wrap_future(landed)

    # Everything below runs in the thread.

    def _run(self) -> None:
        """Post what was ordered, and poll all that is posted."""
        flights: list[_Flight] = []
        while (flight := self._next(wait=not flights)) is not None:
            if flight is not NOTHING:
                flights.append(flight)
            flights = [flight for flight in flights if not self._landed(flight)]
            self._blocks.agent.get_new_notifs()

    def _next(self, wait: bool) -> "_Flight | None":
        try:
            order = self._orders.get(block=wait)
        except queue.Empty:
            return NOTHING
        return None if order is None else self._post(*order)

    def _post(self, number: int, num_tokens: int, notice: str, landed: Future[float]) -> "_Flight":
        began = time.monotonic()
        blocks = self._blocks
        first = number * blocks.per_embedding
        ours = np.arange(first, first + blocks_for(num_tokens, SETTINGS.block_size), dtype=np.int32)
        theirs = ours + np.int32(self.index * blocks.num_blocks)
        handle = blocks.agent.make_prepped_xfer(
            "WRITE", self._local, ours, self._remote, theirs, notice.encode()
        )
        blocks.agent.transfer(handle)
        return _Flight(handle, began, landed)

    def _landed(self, flight: "_Flight") -> bool:
        if self._blocks.agent.check_xfer_state(flight.handle) == "PROC":
            return False
        flight.handle.release()
        flight.landed.set_result(flight.began)
        return True


class CopyWriter(Writer):
    """The same copy twice, by the C library and by torch."""

    def __init__(self, index: int, peer: Channel) -> None:
        super().__init__(index, peer)
        self._target = torch.empty(0)

    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        self._target = torch.zeros_like(rows)

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        target = self._target[: len(rows)]
        started = time.monotonic()
        if not rows.is_cuda:
            ctypes.memmove(target.data_ptr(), rows.data_ptr(), rows.nbytes)
        moved = time.monotonic()
        target.copy_(rows)
        if rows.is_cuda:
            torch.cuda.synchronize()
        ended = time.monotonic()
        seconds = {"torch copy_": ended - moved}
        if not rows.is_cuda:
            seconds = {"memcpy": moved - started, **seconds}
        return HandOff("", ended, seconds)

    async def stop(self) -> None:
        self._target = torch.empty(0)


def _in_huge_pages(num_bytes: int) -> torch.Tensor:
    """Zeros, in huge pages where the kernel has them."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.bfloat16).zero_()
