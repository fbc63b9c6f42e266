# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A contender's processes, one receiver and its writers, and the channels that reach them.

    this process ──orders──▶ writers ──control messages──▶ receiver
                 ──orders────────────────────────────────▶ receiver

All processes read the same monotonic clock, so the writer's start and the receiver's end of a
hand-off can be compared.
"""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from benchmarks.channel import HAND_OFF_DEADLINE_S, Channel, Ended, Failed, Hung, all_of
from benchmarks.sides import no_questions, run_receiver, run_writer
from benchmarks.workload import HandOff, Order, PoolShape, Setup

if TYPE_CHECKING:
    from benchmarks.contenders import Contender

START_DEADLINE_S: Final = 120.0
STOP_DEADLINE_S: Final = 5.0
#: From an order to hand-offs at once until they begin: what comes before is prepared meanwhile.
LEAD_S: Final = 0.1

_RESET_PEAK: Final = "5"  # what the kernel takes for it in /proc/PID/clear_refs


@dataclass(frozen=True, slots=True)
class Burst:
    """Hand-offs at once: a list for each writer. `at`: when all embeddings existed."""

    at: float
    done: list[list[HandOff]]


class Team:
    """The processes of one contender, stopped by signal whenever it is not their turn."""

    def __init__(self, contender: "Contender", num_writers: int = 1) -> None:
        self.contender = contender
        self.name = contender.name
        # Forked from a process that has imported torch, and nothing else: that saves each of them
        # seconds, and a quarter of a gigabyte.
        fork = multiprocessing.get_context("forkserver")
        fork.set_forkserver_preload(["torch", "benchmarks.sides"])
        peers = [socket.socketpair() for _ in range(num_writers)]
        orders = [socket.socketpair() for _ in range(num_writers + 1)]
        self._ours = [ours for ours, _ in orders]
        self._theirs = [theirs for _, theirs in orders] + [end for pair in peers for end in pair]
        receiver = (contender.receiver, orders[-1][1], [there for _, there in peers])
        self._processes = [
            fork.Process(
                target=run_writer, args=(contender.writer, index, orders[index][1], peers[index][0])
            )
            for index in range(num_writers)
        ]
        self._processes.append(fork.Process(target=run_receiver, args=receiver))
        self._writers = [Channel(no_questions) for _ in range(num_writers)]
        self._receiver = Channel(no_questions)

    def spawn(self) -> None:
        """Let all processes load what they need, each in its own time."""
        for process in self._processes:
            process.start()
        for end in self._theirs:
            end.close()

    async def open(self) -> None:
        """Wait until all have loaded. Raises `Failed`."""
        for channel, end in zip(self._channels, self._ours, strict=True):
            await channel.open(end)
        for channel in self._channels:
            await self._ask(channel, "load", deadline_s=START_DEADLINE_S)

    async def start(self, setup: Setup) -> None:
        """Make all ready for `setup`. Raises `Failed`."""
        await self._ask(self._receiver, "start", setup, START_DEADLINE_S)
        for channel in self._writers:
            await self._ask(channel, "start", setup, START_DEADLINE_S)

    async def hand_off(self, order: Order) -> HandOff:
        """One hand-off by the first writer. Raises `Failed`, also if a byte is wrong."""
        done: list[HandOff] = await self._ask(self._writers[0], "hand_off", order)
        return done[0]

    async def burst(
        self, tokens: int, in_flight: int, verify: bool = False, shape: PoolShape | None = None
    ) -> Burst:
        """`in_flight` hand-offs at once, shared out among as many writers. Raises `Failed`."""
        writers = self._writers[:in_flight]
        at = time.monotonic() + LEAD_S
        shape = shape or self.contender.shape
        order = Order(tokens, in_flight // len(writers), shape, verify=verify, at=at)
        done = await all_of(self._ask(writer, "hand_off", order) for writer in writers)
        return Burst(at, done)

    async def touch(self) -> None:
        """All memory that is allocated in advance counts as resident from here on."""
        for channel in self._channels:
            await self._ask(channel, "touch")

    async def release(self) -> None:
        """Give back what belongs to the setup. Raises `Failed`."""
        for channel in self._channels:
            await self._ask(channel, "release")

    def pause(self) -> None:
        """Some contenders use processor time even when they have nothing to do."""
        if self.contender.may_be_stopped:
            self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End all processes at once: nothing is lost, and some hang on exit."""
        self._signal(signal.SIGKILL)
        for process in self._processes:
            if process.pid is not None:
                process.join(STOP_DEADLINE_S)
        for channel, end in zip(self._channels, self._ours, strict=True):
            channel.close()
            await channel.ended()
            end.close()

    # Receiver and first writer, as the kernel sees them.

    @property
    def pids(self) -> dict[str, int]:
        receiver, writer = self._processes[-1], self._processes[0]
        return {"receiver": receiver.pid or 0, "writer": writer.pid or 0}

    def resident(self) -> dict[str, int]:
        """Bytes."""
        return {role: psutil.Process(pid).memory_info().rss for role, pid in self.pids.items()}

    def peak(self) -> dict[str, int]:
        """Most bytes since `reset_peak`."""
        return {role: _peak_of(pid) for role, pid in self.pids.items()}

    def reset_peak(self) -> None:
        for pid in self.pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    def processor_seconds(self) -> dict[str, float]:
        times = {role: psutil.Process(pid).cpu_times() for role, pid in self.pids.items()}
        return {role: used.user + used.system for role, used in times.items()}

    @property
    def _channels(self) -> list[Channel]:
        return [*self._writers, self._receiver]

    async def _ask(
        self, channel: Channel, op: str, body: Any = None, deadline_s: float = HAND_OFF_DEADLINE_S
    ) -> Any:
        try:
            return await channel.ask(op, body, deadline_s)
        except Hung:
            await self.stop()  # it must not disturb the others
            raise
        except Failed as error:
            if str(error) != str(Ended()):  # of ours, or of a writer that has lost its peer
                raise
            raise Failed(f"{error} ({self._obituary()})") from None

    def _obituary(self) -> str:
        """How processes of the team have ended."""
        wait([process.sentinel for process in self._processes], STOP_DEADLINE_S)
        codes = {process.exitcode for process in self._processes} - {None}
        hint = ", perhaps for want of memory" if -signal.SIGKILL in codes else ""
        return f"exit code {', '.join(str(code) for code in codes)}{hint}"

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


def _peak_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
