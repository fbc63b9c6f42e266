# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A contender's two processes, writer and receiver, and the channels that reach them.

    this process ──commands──▶ writer ──control messages──▶ receiver
                 ──commands──────────────────────────────▶ receiver

Every channel is a socket pair with pickled frames, never an embedding. Both processes read the
same monotonic clock, so the writer's start and the receiver's end of a hand-off can be compared.
"""

import asyncio
import ctypes
import importlib
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    import torch

    from benchmarks.contenders import Contender

START_DEADLINE_S: Final = 120.0
HAND_OFF_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 5.0

_HEADER: Final = struct.Struct("!I")
_PR_SET_PDEATHSIG: Final = 1

Answer = Callable[[str, Any], Awaitable[Any]]


class Failed(Exception):
    """A process answered with an error, gave no answer in time, or ended."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is handed over: bfloat16 embeddings of `hidden` elements a token."""

    tokens: tuple[int, ...]
    hidden: int


class Channel:
    """Questions and answers over one socket, in both directions at once."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self, end: socket.socket) -> None:
        """Use `end` from here on."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        self._reading = asyncio.ensure_future(self._read(reader))

    async def ask(self, op: str, body: Any = None, deadline_s: float = HAND_OFF_DEADLINE_S) -> Any:
        """The other side's answer. Raises `Failed`."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(number, op, body)
            async with asyncio.timeout(deadline_s):
                return await future
        except TimeoutError:
            raise Failed(f"no answer to {op!r} in {deadline_s:g} s") from None
        finally:
            self._asked.pop(number, None)

    async def ended(self) -> None:
        """Returns once the other side has closed the socket."""
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _send(self, number: int, op: str, body: Any) -> None:
        if self._writer is None or self._writer.is_closing():
            raise Failed("the process has ended")
        frame = pickle.dumps((number, op, body))
        self._writer.write(_HEADER.pack(len(frame)) + frame)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (size,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
                self._dispatch(*pickle.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(Failed("the process has ended"))

    def _dispatch(self, number: int, op: str, body: Any) -> None:
        if op in ("answer", "error"):
            future = self._asked.get(number)
            if future is None or future.done():
                return
            if op == "answer":
                future.set_result(body)
            else:
                future.set_exception(Failed(body))
            return
        task = asyncio.ensure_future(self._serve(number, op, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, op: str, body: Any) -> None:
        try:
            self._send(number, "answer", await self._answer(op, body))
        except Failed as error:
            self._send(number, "error", str(error))
        except Exception as error:  # whatever went wrong is the result of this measurement
            self._send(number, "error", f"{type(error).__name__}: {error}")


class Receiver:
    """The prefill side of a contender. This one does nothing, for those that need no second side.

    After a hand-off, `rows` is the embedding as the engine would get it.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.rows: torch.Tensor | None = None

    async def start(self) -> None:
        """Prepare; not measured."""

    async def answer(self, op: str, body: Any) -> Any:
        """Answer the writer."""
        raise NotImplementedError(op)


class Writer:
    """The encode side of a contender."""

    def __init__(self, workload: Workload, peer: Channel) -> None:
        self.workload = workload
        self.peer = peer

    async def start(self, rows: "torch.Tensor") -> None:
        """Prepare; not measured. `rows` is the longest embedding, all others are its beginning."""

    async def hand_off(self, rows: "torch.Tensor") -> dict[str, float]:
        """Hand `rows` over; the seconds it took, per series. Nothing is left in flight."""
        raise NotImplementedError


class Pair:
    """The two processes of one contender, stopped by signal whenever it is not their turn."""

    def __init__(self, contender: "Contender", workload: Workload) -> None:
        self.name = contender.name
        self.peak_rss = {"writer": 0, "receiver": 0}
        writer_end, self._writer_socket = socket.socketpair()
        receiver_end, self._receiver_socket = socket.socketpair()
        ends = socket.socketpair()
        spawn = multiprocessing.get_context("spawn")
        self._processes = {
            "writer": spawn.Process(
                target=run_writer, args=(contender.writer, workload, writer_end, ends[0])
            ),
            "receiver": spawn.Process(
                target=run_receiver, args=(contender.receiver, workload, receiver_end, ends[1])
            ),
        }
        self._given = (writer_end, receiver_end, *ends)
        self._writer = Channel(_no_questions)
        self._receiver = Channel(_no_questions)

    def spawn(self) -> None:
        """Let both processes load what they need, each in its own time."""
        for process in self._processes.values():
            process.start()
        for end in self._given:
            end.close()

    async def start(self) -> None:
        """Make both sides ready. Raises `Failed`."""
        await self._writer.open(self._writer_socket)
        await self._receiver.open(self._receiver_socket)
        await self._receiver.ask("start", deadline_s=START_DEADLINE_S)
        await self._writer.ask("start", deadline_s=START_DEADLINE_S)

    async def hand_off(self, tokens: int, verify: bool = False) -> dict[str, float]:
        """One hand-off, in seconds per series. Raises `Failed`, also if a byte is wrong."""
        took: dict[str, float] = await self._writer.ask("hand_off", (tokens, verify))
        return took

    def pause(self) -> None:
        """Some contenders use processor time even when they have nothing to do."""
        for role, process in self._processes.items():
            if process.pid is not None and process.is_alive():
                rss = psutil.Process(process.pid).memory_info().rss
                self.peak_rss[role] = max(self.peak_rss[role], rss)
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End both processes at once: a round is over, nothing is lost, and some hang on exit."""
        self._signal(signal.SIGKILL)
        for process in self._processes.values():
            if process.pid is not None:
                process.join(STOP_DEADLINE_S)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


def run_writer(path: str, workload: Workload, parent: socket.socket, peer: socket.socket) -> None:
    """Body of a writer's process."""
    _become_child()
    asyncio.run(_serve_writer(path, workload, parent, peer))


def run_receiver(path: str, workload: Workload, parent: socket.socket, peer: socket.socket) -> None:
    """Body of a receiver's process."""
    _become_child()
    asyncio.run(_serve_receiver(path, workload, parent, peer))


async def _serve_writer(
    path: str, workload: Workload, parent: socket.socket, peer: socket.socket
) -> None:
    import torch

    channel = Channel(_no_questions)
    await channel.open(peer)
    writer: Writer = _load(path)(workload, channel)
    shape = (max(workload.tokens), workload.hidden)
    rows = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=torch.Generator())

    async def answer(op: str, body: Any) -> Any:
        match op:
            case "start":
                await writer.start(rows)
            case "hand_off":
                tokens, verify = body
                took = await writer.hand_off(rows[:tokens])
                checksum = await channel.ask("finish", (tokens, verify))
                if checksum is not None and checksum != _checksum(rows[:tokens]):
                    raise Failed("the embedding arrived changed")
                return took

    commands = Channel(answer)
    await commands.open(parent)
    await commands.ended()


async def _serve_receiver(
    path: str, workload: Workload, parent: socket.socket, peer: socket.socket
) -> None:
    receiver: Receiver = _load(path)(workload)

    async def answer_writer(op: str, body: Any) -> Any:
        if op != "finish":
            return await receiver.answer(op, body)
        (tokens, verify), rows = body, receiver.rows
        receiver.rows = None
        if not verify or type(receiver) is Receiver:
            return None
        if rows is None:
            raise Failed("nothing arrived")
        if rows.shape != (tokens, workload.hidden) or not rows.is_contiguous():
            raise Failed(f"arrived as {tuple(rows.shape)}, strides {rows.stride()}")
        return _checksum(rows)

    async def answer_parent(op: str, body: Any) -> None:
        await receiver.start()

    channel, commands = Channel(answer_writer), Channel(answer_parent)
    await channel.open(peer)
    await commands.open(parent)
    await commands.ended()


async def _no_questions(op: str, body: Any) -> Any:
    raise NotImplementedError(op)


def _become_child() -> None:
    """End with our parent, even if we are stopped; interrupts are the parent's business."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _checksum(rows: "torch.Tensor") -> int:
    import zlib

    import torch

    return zlib.crc32(rows.view(torch.uint8).numpy().tobytes())
