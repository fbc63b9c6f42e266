# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The two sides of a contender, and the processes that they live in.

torch is imported late: the process that gives the orders needs none.
"""

import asyncio
import ctypes
import importlib
import logging
import os
import signal
import socket
import time
import warnings
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from benchmarks.channel import Channel, Failed, all_of
from benchmarks.workload import HandOff, Order, Setup

if TYPE_CHECKING:
    import torch

_PR_SET_PDEATHSIG: Final = 1


class Receiver:
    """The prefill side of a contender. This one does nothing, for those that need no second side.

    `rows` has the embeddings that arrived, by key, as the engine would get them.
    """

    def __init__(self) -> None:
        self.rows: dict[str, torch.Tensor] = {}

    async def start(self, setup: Setup) -> None:
        """Prepare; not measured. After `stop`, again."""

    async def answer(self, op: str, body: Any) -> Any:
        """Answer a writer."""
        raise NotImplementedError(op)

    def touch(self) -> None:
        """Use all memory that is allocated in advance, so that it counts as resident."""

    def release(self, key: str) -> None:
        """The engine has the embedding: forget it."""
        self.rows.pop(key, None)

    async def stop(self) -> None:
        """Give back what depends on the setup."""


class Writer:
    """The encode side of a contender."""

    def __init__(self, index: int, peer: Channel) -> None:
        """`index`: which of the writers."""
        self.index = index
        self.peer = peer

    async def start(self, setup: Setup, rows: "torch.Tensor") -> None:
        """Prepare; not measured. `rows`, `(in_flight * tokens, hidden)`: all embeddings."""

    async def hand_off(self, rows: "torch.Tensor", number: int, order: Order) -> HandOff:
        """Hand `rows` over, the `number`th embedding or its beginning. Nothing stays in flight."""
        raise NotImplementedError

    def touch(self) -> None:
        """As `Receiver.touch`."""

    async def stop(self) -> None:
        """As `Receiver.stop`."""


def run_writer(path: str, index: int, orders: socket.socket, peer: socket.socket) -> None:
    """Body of a writer's process."""
    _become_child(_serve_writer(path, index, orders, peer))


def run_receiver(path: str, orders: socket.socket, peers: Sequence[socket.socket]) -> None:
    """Body of the receiver's process."""
    _become_child(_serve_receiver(path, orders, peers))


class _WriterProcess:
    """Carries the orders of a writer out."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rows: torch.Tensor | None = None
        self._setup = Setup(0)

    async def answer(self, op: str, body: Any) -> Any:
        match op:
            case "start":
                self._setup = body
                self._rows = embeddings(body, self._writer.index)
                await self._writer.start(body, self._rows)
            case "hand_off":
                return await self._hand_off(body)
            case "touch":
                self._writer.touch()
            case "release":
                await self._writer.stop()
                self._rows = None

    async def _hand_off(self, order: Order) -> list[HandOff]:
        parts = [self._part(number, order.tokens) for number in range(order.count)]
        done = await all_of(self._writer.hand_off(rows, n, order) for n, rows in enumerate(parts))
        for rows, one in zip(parts, done, strict=True):
            await self._finish(one, rows, order)
        return done

    async def _finish(self, one: HandOff, rows: "torch.Tensor", order: Order) -> None:
        checksum = await self._writer.peer.ask("finish", (one.key, rows.shape, order.verify))
        if checksum is not None and checksum != checksum_of(rows):
            raise Failed("the embedding arrived changed")

    def _part(self, number: int, tokens: int) -> "torch.Tensor":
        assert self._rows is not None
        first = number * self._setup.tokens
        return self._rows[first : first + tokens]


async def _serve_writer(path: str, index: int, orders: socket.socket, peer: socket.socket) -> None:
    channel = Channel(no_questions)
    await channel.open(peer)
    commands = Channel(_WriterProcess(_load(path)(index, channel)).answer)
    await commands.open(orders)
    await commands.ended()


async def _serve_receiver(path: str, orders: socket.socket, peers: Sequence[socket.socket]) -> None:
    receiver: Receiver = _load(path)()

    async def answer_writer(op: str, body: Any) -> Any:
        return _finish(receiver, *body) if op == "finish" else await receiver.answer(op, body)

    async def answer_orders(op: str, body: Any) -> None:
        match op:
            case "start":
                await receiver.start(body)
            case "touch":
                receiver.touch()
            case "release":
                await receiver.stop()

    writers = [Channel(answer_writer) for _ in peers]
    for channel, peer in zip(writers, peers, strict=True):
        await channel.open(peer)
    commands = Channel(answer_orders)
    await commands.open(orders)
    await commands.ended()


def _finish(receiver: Receiver, key: str, shape: tuple[int, int], verify: bool) -> int | None:
    """The checksum of what arrived, if asked for and if there is a second side."""
    if type(receiver) is Receiver:
        return None
    rows = receiver.rows.get(key)
    try:
        if rows is None:
            raise Failed("nothing arrived")
        if rows.shape != shape or not rows.is_contiguous():
            raise Failed(f"arrived as {tuple(rows.shape)}, strides {rows.stride()}")
        return checksum_of(rows) if verify else None
    finally:
        del rows
        receiver.release(key)


def embeddings(setup: Setup, writer: int) -> "torch.Tensor":
    """All embeddings of a writer: bytes that nobody else has, made fast."""
    import numpy as np
    import torch

    words = setup.writer_bytes // 8
    generator = np.random.Generator(np.random.SFC64(writer))
    rows = torch.from_numpy(generator.integers(0, 2**63, words, np.int64))
    return rows.view(torch.bfloat16).view(-1, setup.hidden).to(setup.device)


def checksum_of(rows: "torch.Tensor") -> int:
    """CRC-32 of all bytes."""
    import zlib

    import torch

    return zlib.crc32(rows.cpu().view(torch.uint8).numpy().reshape(-1).data)


async def wait_until(moment: float) -> None:
    """Until the embedding exists: hand-offs at once begin together."""
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


async def no_questions(op: str, body: Any) -> Any:
    raise NotImplementedError(op)


def _become_child(serving: Coroutine[Any, Any, None]) -> None:
    """End with our parent, even if we are stopped; interrupts are the parent's business.

    Libraries of some contenders have much to say when they start. Errors still show.
    """
    import uvloop

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ |= {"NIXL_LOG_LEVEL": "ERROR", "UCX_LOG_LEVEL": "fatal"}
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(serving)  # as Dynamo's workers


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)
