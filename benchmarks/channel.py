# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Questions and answers between two processes: pickled frames, never an embedding."""

import asyncio
import itertools
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

HAND_OFF_DEADLINE_S: Final = 30.0

_HEADER: Final = struct.Struct("!I")

T = TypeVar("T")
Answer = Callable[[str, Any], Awaitable[Any]]


class Failed(Exception):
    """A process answered with an error, gave no answer in time, or ended. The text says which."""


class Hung(Failed):
    """No answer in time: nobody knows what the process does now."""


class Ended(Failed):
    """The process at the other end is gone."""

    def __init__(self) -> None:
        super().__init__("the process has ended")


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
            raise Hung(f"no answer to {op!r} in {deadline_s:g} s") from None
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
            raise Ended
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
                    future.set_exception(Ended())

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
        except Exception as error:  # whatever went wrong is the result of this measurement
            self._send(number, "error", _text_of(error))


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """What all of them return, once all have ended. Raises the first error."""
    tasks = [asyncio.ensure_future(each) for each in work]
    await asyncio.wait(tasks)
    errors = [error for task in tasks if (error := task.exception()) is not None]
    for error in errors:
        raise error
    return [task.result() for task in tasks]


def _text_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
