# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A writer, or a receiver, in a process of its own; a pipe stands in for Dynamo's endpoints."""

import asyncio
import multiprocessing
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.transport.writer import Writer
from tests.transport.pair import DEADLINE_S, ReceivingSide, WritingSide, rows_of


class Pipe:
    """Messages as dicts, both ways, never without a deadline."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, message: m.Message) -> None:
        self._connection.send(m.dump(message))

    async def receive(self) -> Any:
        def read() -> Any:
            if not self._connection.poll(3 * DEADLINE_S):
                raise TimeoutError("the other process is silent")
            return self._connection.recv()

        return await asyncio.get_running_loop().run_in_executor(None, read)


Main = Callable[..., Coroutine[Any, Any, None]]


@contextmanager
def a_process(main: Main, *arguments: Any) -> Iterator[tuple[BaseProcess, Pipe]]:
    """`main(pipe, *arguments)` in another process, without our threads; killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once for all of them
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(main, theirs, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, Pipe(ours)
    finally:
        process.kill()
        process.join(DEADLINE_S)
        ours.close()
        process.close()


def _run(main: Main, connection: Connection, arguments: tuple[Any, ...]) -> None:
    asyncio.run(main(Pipe(connection), *arguments))


def encode_of(seed: int, num_tokens: int, granted: m.Granted) -> m.Encode:
    """The media item `rows:<seed>:<num_tokens>`: both processes can make its embedding."""
    return m.Encode(
        transfer_id=granted.grant.transfer_id,
        media=m.Media(modality="image", url=f"rows:{seed}:{num_tokens}"),
        grant=granted.grant,
        receiver=granted.receiver,
        prompt_tokens=1,
        max_prompt_tokens=granted.max_prompt_tokens,
    )


async def write_for_parent(pipe: Pipe, num_blocks: int, stop_after_chunks: int | None) -> None:
    """An encode worker. After `stop_after_chunks` chunks it hangs before the next post."""
    side = WritingSide(num_blocks)
    await side.start()
    if stop_after_chunks is not None:
        _hang_after(side.writer, stop_after_chunks)
    welcome: m.Welcome = m.parse(m.PREFILL_REPLY, await pipe.receive())
    await side.agent.connect(welcome)
    pipe.send(m.Done())
    tasks = set()
    while True:
        payload = await pipe.receive()
        if payload["op"] == "encode":
            message = m.parse(m.ENCODE, payload)
            tasks.add(asyncio.ensure_future(_encode(pipe, side, message, welcome.num_blocks)))
            continue
        match m.parse(m.ENCODE_CONTROL, payload):
            case m.Forward(grant=grant):
                side.writer.forward(grant)
            case m.Close(transfer_id=transfer_id):
                await side.writer.close(transfer_id)
                pipe.send(m.Done())


async def _encode(pipe: Pipe, side: WritingSide, message: m.Encode, receiver_blocks: int) -> None:
    _, seed, num_tokens = message.media.url.split(":")
    outgoing = side.writer.open(message.grant, message.receiver.agent, receiver_blocks)
    rows = rows_of(int(seed), int(num_tokens))
    pipe.send(m.Sized(total_tokens=len(rows), grid=(1, 2, 2), content_hash="0" * 16))
    async for sent in outgoing.send(rows):
        pipe.send(sent)


def _hang_after(writer: Writer, num_chunks: int) -> None:
    write_chunk = writer.write_chunk

    async def write_or_hang(*arguments: Any) -> None:
        if writer.totals.chunks == num_chunks:
            await asyncio.Event().wait()
        await write_chunk(*arguments)

    writer.write_chunk = write_or_hang


async def receive_for_parent(pipe: Pipe, num_blocks: int, default_blocks: int) -> None:
    """A prefill worker: says hello, grants, and never resumes."""
    side = ReceivingSide(num_blocks, default_blocks)
    await side.start()
    pipe.send(side.welcome)
    while True:
        message = m.parse(m.PREFILL_REQUEST, await pipe.receive())
        assert isinstance(message, m.Reserve)
        pipe.send(granted_by(side, await side.assembler.reserve(message)))


def granted_by(side: ReceivingSide, grant: m.Grant) -> m.Granted:
    receiver = m.ReceiverName(instance_id=1, agent=side.agent.name)
    return m.Granted(grant=grant, receiver=receiver, max_prompt_tokens=1)
