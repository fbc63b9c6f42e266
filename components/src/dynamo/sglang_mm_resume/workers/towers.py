# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A vision tower of several processes, and several towers: `--tp-size` and `--dp-size`.

This process has the first rank of the first tower, and is told what its tower shall compute like
that of a single process; the others are told by it. All ranks of a tower take part in each
computation, in the same order, or none can go on: where one fails or ends, the worker ends.
"""

import asyncio
import io
import logging
import multiprocessing
import pickle
import queue
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import torch

from dynamo.sglang_mm_resume.workers.lifecycle import WorkerLost

logger = logging.getLogger(__name__)

#: How SGLang names what a tower computes: `get_image_feature`.
FEATURES: Final = ("get_image_feature", "get_video_feature")
#: Seconds that a process may take to end by itself.
END_TIMEOUT_S: Final = 5.0

Features = Callable[[list[Any]], torch.Tensor]
#: Makes one rank of a tower, given its place; SGLang's encoder (workers/sglang_encoder.py).
MakeEncoder = Callable[["Place"], Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Of one rank. `device` counts from the first one of the worker."""

    rank: int
    device: int
    meeting_point: str


@dataclass(frozen=True, slots=True)
class _Rank:
    """A process of ours, and the way to it."""

    process: Any
    connection: Connection


class Towers:
    """All ranks of all towers but the first one of the first."""

    def __init__(self, make_encoder: MakeEncoder, tp_size: int, dp_size: int) -> None:
        """Starts the processes; `make_encoder` is called in each, and must travel."""
        self.dp_size = dp_size
        self._ranks: list[list[_Rank]] = []
        self._idle: queue.Queue[int] = queue.Queue()
        towers = [places(tower, tp_size) for tower in range(dp_size)]
        self.first = towers[0].pop(0)
        for tower, ranks in enumerate(towers):
            self._ranks.append([_start(make_encoder, place) for place in ranks])
            self._idle.put(tower)

    def lead(self, model: Any) -> None:
        """Have what this process computes be computed by a tower that is idle, by all its ranks."""
        if not self._all():
            return
        for name in FEATURES:
            compute = getattr(model, name, None)
            if compute is not None:
                setattr(model, name, self._led(name, compute))

    async def lost(self) -> None:
        """Raises `WorkerLost` once a process has ended; never returns."""
        sentinels = [rank.process.sentinel for rank in self._all()]
        if not sentinels:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        for sentinel in sentinels:
            loop.add_reader(sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            for sentinel in sentinels:
                loop.remove_reader(sentinel)
        raise WorkerLost("a process of the vision tower has ended: start again")

    def close(self) -> None:
        """End the processes."""
        for rank in self._all():
            rank.connection.close()  # at which it ends, unless it computes
        give_up_at = time.monotonic() + END_TIMEOUT_S
        for rank in self._all():
            rank.process.join(max(0.0, give_up_at - time.monotonic()))
            rank.process.kill()

    def _all(self) -> list[_Rank]:
        return [rank for tower in self._ranks for rank in tower]

    def _led(self, name: str, compute: Features) -> Features:
        def features(items: list[Any]) -> torch.Tensor:
            tower = self._idle.get()  # there are as many threads as towers
            try:
                return self._compute(tower, name, items, compute)
            finally:
                self._idle.put(tower)

        return features

    def _compute(self, tower: int, name: str, items: list[Any], compute: Features) -> torch.Tensor:
        ranks = self._ranks[tower]
        work = packed((name, items))
        try:
            for rank in ranks:
                rank.connection.send_bytes(work)
            if tower == 0:
                return compute(items)
            rows: torch.Tensor = pickle.loads(ranks[0].connection.recv_bytes())
            return rows
        except BaseException:
            for rank in ranks:  # they may be at another point: the worker ends
                rank.process.kill()
            raise


def packed(work: Any) -> bytes:
    """Pickled, with all tensors in host memory: one of a GPU would come back on the GPU of the same
    number, which is another one's in another rank.
    """
    buffer = io.BytesIO()
    _HostPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(work)
    return buffer.getvalue()


class _HostPickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            return value.cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented


def _start(make_encoder: MakeEncoder, place: Place) -> _Rank:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make_encoder, place, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Rank(process, ours)


def _serve(make_encoder: MakeEncoder, place: Place, connection: Connection) -> None:
    """A rank's process: computes what it is told until nobody is there to tell it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # while the worker finishes what it has begun
        signal.signal(number, signal.SIG_IGN)
    encoder = make_encoder(place)
    while True:
        try:
            name, items = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        with torch.inference_mode():
            rows = getattr(encoder.model, name)(items)
        if place.rank == 0:
            connection.send_bytes(pickle.dumps(rows.cpu()))


def places(tower: int, tp_size: int) -> list[Place]:
    """Of the ranks of one tower, which find each other at a port; one alone takes any."""
    port = _free_port() if tp_size > 1 else 0
    point = f"tcp://127.0.0.1:{port}"
    return [Place(rank, tower * tp_size + rank, point) for rank in range(tp_size)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
