# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One thread that owns the NIXL agent (R15); the only file that knows NIXL's names.

NIXL facts this file obeys (measured on nixl 1.5.0, UCX 1.23):
    * the agent is not thread-safe and its own progress thread spins a core, so every call, the
      release of handles included, is made by our thread, which polls;
    * a WRITE's notification leaves only while the writer polls, and the WRITE ends only while the
      receiver polls: both sides poll, fast while something is expected, calmly otherwise;
    * a handle that is still in progress is never released: that would not stop the data;
    * errors are exceptions; after one, the peer must be removed and met again.
"""

import asyncio
import ctypes
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
import torch
from nixl import nixl_agent, nixl_agent_config

from dynamo.sglang_mm_resume.core.errors import ProtocolError, TransferFailed
from dynamo.sglang_mm_resume.core.messages import Welcome
from dynamo.sglang_mm_resume.transport.copies import DONE, Copy
from dynamo.sglang_mm_resume.transport.memory import PoolMemory

logger = logging.getLogger(__name__)

T = TypeVar("T")
OnNotice = Callable[[str, bytes], None]

#: Seconds between polls while chunks are under way. A chunk that is written needs a poll of its
#: receiver, one of its writer, and another of its receiver until it is known; more frequent ones
#: take more time from the copies than they save.
BUSY_POLL_S: Final = 0.0002
#: Seconds of polling without sleeping after a GPU was given something to copy: it takes less than
#: one sleep. A chunk of 15 MB is 35 to 75 µs over NVLink.
SPIN_S: Final = 0.0001
#: Seconds after the last activity in which the next chunk is likely.
BUSY_S: Final = 0.003
#: Seconds between polls while a transfer is live, but its tower may have to run first.
WAITING_POLL_S: Final = 0.001
#: Seconds between polls while nothing is expected: keeps connections alive at no visible cost.
IDLE_POLL_S: Final = 0.05
#: Seconds of polling ten times as often after the last activity: a first notification needs the
#: help of its writer.
LINGER_S: Final = 0.25
#: Seconds between rounds that fail, so that a lasting fault does not flood the log.
AFTER_ERROR_S: Final = 1.0
#: Seconds that a worker which shuts down waits for the thread to end.
STOP_TIMEOUT_S: Final = 10.0
#: `prctl` of Linux: nanoseconds by which this thread's sleeps may be prolonged.
_PR_SET_TIMERSLACK: Final = 29
#: Makes UCX connect ahead of the first chunk (5 to 13 ms); receivers drop it.
WARM_UP: Final = b"warm-up"


class PeerLost(TransferFailed):
    """The peer's NIXL agent is gone: say hello again before the next write."""


def _nothing() -> Copy:
    """The rows are in their blocks already."""
    return DONE


@dataclass(frozen=True, slots=True)
class Write:
    """Blocks of ours to go into blocks of a peer, posted before `deadline` (monotonic seconds).

    `load` begins to bring the rows into our blocks; they leave once that is done, and `notice`
    behind them.
    """

    local: Sequence[int]
    remote: Sequence[int]
    notice: bytes
    deadline: float
    load: Callable[[], Copy] = _nothing


@dataclass(slots=True)
class _Peer:
    blocks: Any  # prepared remote descriptor list
    num_blocks: int


@dataclass(frozen=True, slots=True)
class _Load:
    """A write whose rows are on their way into our blocks."""

    peer: str
    write: Write
    copy: Copy
    done: "Future[float]"


@dataclass(slots=True)
class _Flight:
    peer: str
    handle: Any
    done: "Future[float]"
    posted_at: float


class NixlAgent:
    """A registered pool and the peers it exchanges blocks with. Made and used on one loop."""

    def __init__(self, name: str, memory: PoolMemory, on_notice: OnNotice) -> None:
        self.name = name
        self.metadata = b""
        self._memory = memory
        self._on_notice = on_notice
        self._loop = asyncio.get_running_loop()
        # Not a SimpleQueue: in CPython 3.11, one whose timeout passes at the wrong moment waits for
        # ever, and with it whoever waits for the thread.
        self._commands: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._expecting = 0
        self._active_at = 0.0
        self._spin_until = 0.0
        self._loads: list[_Load] = []
        self._flights: list[_Flight] = []
        self._peers: dict[str, _Peer] = {}
        self._lost: dict[str, _Peer] = {}  # failed, but with writes still in flight
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"nixl-{name}", daemon=True)
        self._agent: Any = None
        self._local: Any = None
        self._registration: Any = None

    @property
    def memory_kind(self) -> Literal["DRAM", "VRAM"]:
        """NIXL's name of the pool's memory: `DRAM` or `VRAM`."""
        return "VRAM" if self._memory.device.type == "cuda" else "DRAM"

    @property
    def device_id(self) -> int:
        return self._memory.device.index or 0

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    async def start(self) -> None:
        """Create the agent and register the pool, once (R1)."""
        self._thread.start()
        self.metadata = await self._call(self._create)

    async def stop(self) -> None:
        """Wait for writes in flight, deregister, end the thread. Safe to call twice.

        A write to a hung receiver may never end: after `STOP_TIMEOUT_S` the log says so, and the
        pool stays registered until the process ends.
        """
        if not self._thread.is_alive():
            return
        self._stopping = True
        self._commands.put(None)
        await self._loop.run_in_executor(None, self._thread.join, STOP_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error(
                "NIXL agent %s does not end: %d writes are still in flight after %g s",
                self.name,
                self.num_in_flight,
                STOP_TIMEOUT_S,
            )

    async def connect(self, peer: Welcome) -> None:
        """Load a receiver's metadata and prepare its block list, once per peer."""
        if peer.layout.block_bytes != self._memory.layout.block_bytes:
            raise ProtocolError("peers must have blocks of equal size")
        await self._call(lambda: self._connect(peer))

    async def disconnect(self, agent: str) -> None:
        """Forget a peer that has left; writes in flight to it end first. Unknown ones are fine."""
        await self._call(lambda: self._forget(agent))

    def is_connected(self, agent: str) -> bool:
        return agent in self._peers

    async def write(self, agent: str, write: Write) -> float:
        """WRITE our blocks to a peer's, then notify. Returns when nothing is in flight: the seconds
        from the post to its end.

        Raises `PeerLost`, `TransferFailed` if its deadline has passed when the thread comes to post
        it (R8), or what `load` and its copy raise. Cancelling the caller does not stop the write:
        shield it, and keep the local blocks until it returns (R6).
        """
        self._require_running()
        landed: Future[float] = Future()
        self._commands.put(lambda: self._load(agent, write, landed))
        return await asyncio.wrap_future(landed)

    def expect(self, change: int) -> None:
        """Count transfers under way (+1, -1) and poll for them; 0: a chunk comes very soon."""
        self._expecting += change
        if change >= 0:
            self._commands.put(None)  # wakes the thread from its calm poll

    def _require_running(self) -> None:
        if self._stopping:
            raise TransferFailed(f"NIXL agent {self.name} is stopped")

    async def _call(self, function: Callable[[], T]) -> T:
        self._require_running()
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return  # the caller is gone
            try:
                result.set_result(function())
            except Exception as error:  # the caller decides; the thread goes on
                result.set_exception(error)

        self._commands.put(run)
        return await asyncio.wrap_future(result)

    # Everything below runs in the thread.

    def _run(self) -> None:
        _sleep_precisely()
        if self._memory.device.type == "cuda":
            torch.cuda.set_device(self._memory.device)
        while not (
            self._stopping and not (self._loads or self._flights) and self._commands.empty()
        ):
            try:
                self._next_command()
                self._poll_loads()
                self._poll_flights()
                self._poll_notices()
            except Exception:  # a dead thread would leave every caller waiting for ever
                logger.exception("NIXL agent %s: a round failed", self.name)
                time.sleep(AFTER_ERROR_S)
        self._destroy()

    def _next_command(self) -> None:
        """At most one command a round, so that a notice waits for one chunk at most."""
        try:
            command = self._commands.get(timeout=self._poll_interval())
        except queue.Empty:
            return
        if command is not None:
            command()
        self._active_at = time.monotonic()

    def _poll_interval(self) -> float:
        now = time.monotonic()
        if now < self._spin_until:
            return 0.0
        quiet_s = now - self._active_at
        if self._loads or self._flights or (self._expecting and quiet_s < BUSY_S):
            return BUSY_POLL_S
        if self._expecting:
            return WAITING_POLL_S
        return IDLE_POLL_S / 10 if quiet_s < LINGER_S else IDLE_POLL_S

    def _poll_loads(self) -> None:
        for load in list(self._loads):
            try:
                if not load.copy.poll():
                    continue
            except Exception as error:  # a fault of the GPU: the caller must hear of it now
                self._loads.remove(load)
                load.done.set_exception(error)
            else:
                self._loads.remove(load)
                self._post(load)

    def _poll_flights(self) -> None:
        for flight in list(self._flights):
            try:
                if self._agent.check_xfer_state(flight.handle) == "PROC":
                    continue
            except Exception as error:  # NIXL's exceptions share no base class
                self._land(flight, error)
            else:
                self._land(flight, None)

    def _poll_notices(self) -> None:
        if self._agent is None:
            return
        for peer, notices in self._agent.get_new_notifs().items():
            self._active_at = time.monotonic()
            for notice in notices:
                if notice != WARM_UP:
                    self._loop.call_soon_threadsafe(self._on_notice, peer, notice)

    def _create(self) -> bytes:
        self._agent = nixl_agent(self.name, nixl_agent_config(enable_prog_thread=False))
        self._registration = self._agent.register_memory(self._memory.tensor)
        blocks = self._block_list(
            self._memory.tensor.data_ptr(), self._memory.num_blocks, self.device_id
        )
        self._local = self._agent.prep_xfer_dlist("", blocks, self.memory_kind)
        metadata: bytes = self._agent.get_agent_metadata()
        return metadata

    def _connect(self, peer: Welcome) -> None:
        if peer.agent in self._peers:
            return
        if peer.agent in self._lost:
            raise PeerLost(f"NIXL agent {peer.agent} failed and still has writes in flight")
        self._agent.add_remote_agent(peer.metadata)
        blocks = self._block_list(peer.base_address, peer.num_blocks, peer.device_id)
        try:
            prepared = self._agent.prep_xfer_dlist(peer.agent, blocks, peer.memory)
        except Exception:  # its pool is not where it says: the next hello must start afresh
            self._agent.remove_remote_agent(peer.agent)
            raise
        self._peers[peer.agent] = _Peer(prepared, peer.num_blocks)
        self._agent.send_notif(peer.agent, WARM_UP)

    def _load(self, agent: str, write: Write, landed: "Future[float]") -> None:
        """Begin to bring its rows into our blocks; post it once they are there."""
        if not landed.set_running_or_notify_cancel():
            return  # the caller is gone
        if agent not in self._peers:
            landed.set_exception(PeerLost(f"NIXL agent {agent} is not connected"))
            return
        try:
            load = _Load(agent, write, write.load(), landed)
            is_there = load.copy.done
        except Exception as error:  # out of memory, or a bug: the caller must hear of it now
            landed.set_exception(error)
            return
        if is_there:
            self._post(load)
        else:
            self._loads.append(load)
            self._spin_until = time.monotonic() + SPIN_S

    def _post(self, load: _Load) -> None:
        agent, write, landed = load.peer, load.write, load.done
        peer = self._peers.get(agent)
        if peer is None:
            landed.set_exception(PeerLost(f"NIXL agent {agent} is not connected"))
            return
        now = time.monotonic()
        late_s = now - write.deadline
        if late_s > 0:
            landed.set_exception(TransferFailed(f"a grant expired {late_s:.1f} s before its post"))
            return
        handle = None
        try:
            handle = self._agent.make_prepped_xfer(
                "WRITE",
                self._local,
                np.asarray(write.local, np.int32),
                peer.blocks,
                np.asarray(write.remote, np.int32),
                write.notice,
            )
            state = self._agent.transfer(handle)
        except Exception as error:  # NIXL's exceptions share no base class
            self._land(_Flight(agent, handle, landed, now), error)
            return
        flight = _Flight(agent, handle, landed, now)
        if state == "PROC":
            self._flights.append(flight)
            if self.memory_kind == "VRAM":
                self._spin_until = time.monotonic() + SPIN_S
        else:
            self._land(flight, None)

    def _land(self, flight: _Flight, error: Exception | None) -> None:
        """A write ended: only now may its handle go and its caller know."""
        if flight in self._flights:
            self._flights.remove(flight)
        self._release(flight.handle)
        self._active_at = time.monotonic()
        if error is not None or flight.peer in self._lost:
            self._forget(flight.peer)
        if error is None:
            flight.done.set_result(time.monotonic() - flight.posted_at)
            return
        name = type(error).__name__
        flight.done.set_exception(PeerLost(f"write to {flight.peer} failed: {name}: {error}"))

    def _release(self, handle: Any) -> None:
        """Whatever NIXL says to this, the write has ended and its caller must hear so."""
        try:
            if handle is not None:
                handle.release()
        except Exception as error:  # NIXL's exceptions share no base class
            logger.warning("NIXL does not release a handle: %s", error)

    def _forget(self, agent: str) -> None:
        """Nothing heals by itself after an error: the next write meets the peer anew.

        The peer is removed with its last write in flight, never under one.
        """
        peer = self._peers.pop(agent, None) or self._lost.get(agent)
        if peer is None:
            return
        if any(flight.peer == agent for flight in self._flights):
            self._lost[agent] = peer
            return
        self._lost.pop(agent, None)
        try:
            peer.blocks.release()
            self._agent.remove_remote_agent(agent)
        except Exception as error:  # already gone: nothing left to undo
            logger.debug("forgetting NIXL agent %s: %s", agent, error)

    def _destroy(self) -> None:
        for peer in self._peers.values():
            peer.blocks.release()
        if self._local is not None:
            self._local.release()
        if self._registration is not None:
            self._agent.deregister_memory(self._registration)
        self._agent = None

    def _block_list(self, address: int, num_blocks: int, device_id: int) -> "np.ndarray[Any, Any]":
        size = self._memory.layout.block_bytes
        rows = np.zeros((num_blocks, 3), np.uint64)  # address, length, device
        rows[:, 0] = np.uint64(address) + np.arange(num_blocks, dtype=np.uint64) * np.uint64(size)
        rows[:, 1] = size
        rows[:, 2] = device_id
        return rows


def _sleep_precisely() -> None:
    """Let this thread wake when it asked for: by default Linux adds 50 µs to every sleep."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
