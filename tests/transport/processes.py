# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A writer, or a receiver, in a process of its own; a pipe stands in for Dynamo's endpoints."""

import asyncio
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.core.errors import ResumeError
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.transitions import Shaking
from dynamo.sglang_mm_resume.transport.nixl_agent import BUSY_POLL_S
from tests.transport.pair import (
    BLOCK_SIZE,
    DEADLINE_S,
    LAYOUT,
    ReceivingSide,
    WritingSide,
    new_id,
    rows_of,
)

#: Blocks of 512 KiB: a chunk of eight does not fit into a socket.
WIDE = Layout(model="test", width=16384, dtype="bfloat16", block_size=BLOCK_SIZE)
#: In the tests of writers that stop or die in a write: the pool, its default grant, its chunks.
NUM_BLOCKS = 24
GRANTED = 16
CHUNK_BLOCKS = 8
#: The instance id of the writer that transfers are reserved for.
WRITER = 7


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


Disturb = Callable[[WritingSide], None]


async def write_for_parent(
    pipe: Pipe,
    num_blocks: int,
    disturb: Disturb | None = None,
    layout: Layout = LAYOUT,
    through_sockets: bool = False,
) -> None:
    """An encode worker; `disturb` changes it before its first transfer.

    `through_sockets`: over TCP as between machines, and with little of a write in the kernel.
    """
    if through_sockets:
        os.environ |= {"UCX_TLS": "tcp", "UCX_TCP_SNDBUF": "64k"}
    side = WritingSide(num_blocks, layout)
    await side.start()
    if disturb is not None:
        disturb(side)
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
    rows = rows_of(int(seed), int(num_tokens), side.memory.layout)
    pipe.send(m.Sized(total_tokens=len(rows), grid=(1, 2, 2), content_hash="0" * 16))
    try:
        async for sent in outgoing.send(rows):
            pipe.send(sent)
    except ResumeError as error:
        pipe.send(m.Refusal.of(error))


def hang_after_two_chunks(side: WritingSide) -> None:
    """Never come to the third post."""
    write_chunk, calls = side.writer.write_chunk, itertools.count()

    async def write_or_hang(*arguments: Any) -> None:
        if next(calls) >= 2:
            await asyncio.Event().wait()
        await write_chunk(*arguments)

    side.writer.write_chunk = write_or_hang


# Where a writer can stop in its second transfer, of two chunks. The first has one chunk.


def stop_between_posts(side: WritingSide) -> None:
    """SIGSTOP with the first chunk written, before the grant of the second one is checked."""

    def let_the_first_end() -> None:
        while side.agent.num_in_flight:
            side.agent._poll_flights()
            time.sleep(BUSY_POLL_S)
        _stop_here()

    _call_at(side.agent, "_post", 3, before=let_the_first_end)


def stop_after_the_check(side: WritingSide) -> None:
    """SIGSTOP between the check of the grant and the first post."""
    _call_at(side.agent._agent, "make_prepped_xfer", 2, before=_stop_here)


def stop_when_posted(side: WritingSide) -> None:
    """SIGSTOP with the first write in flight."""
    _call_at(side.agent._agent, "transfer", 2, after=_stop_here)


def _call_at(
    owner: Any,
    name: str,
    call: int,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Surround one call, the first is 1, of a method."""
    method, calls = getattr(owner, name), itertools.count(1)

    def surrounded(*arguments: Any) -> Any:
        if next(calls) != call:
            return method(*arguments)
        before()
        result = method(*arguments)
        after()
        return result

    setattr(owner, name, surrounded)


def _stop_here() -> None:
    """This thread goes no further, and the others of the process neither."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def is_stopped(process: BaseProcess) -> bool:
    """Whether all of the process stands still."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    states = [(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads]
    return all(state == "T" for state in states)


async def receive_for_parent(pipe: Pipe, num_blocks: int, default_blocks: int) -> None:
    """A prefill worker: says hello, grants, takes aborts, and never resumes."""
    side = ReceivingSide(num_blocks, default_blocks)
    await side.start()
    pipe.send(side.welcome)
    while True:
        match m.parse(m.PREFILL_REQUEST, await pipe.receive()):
            case m.Reserve() as message:
                pipe.send(granted_by(side, await side.assembler.reserve(message)))
            case m.Abort(transfer_id=transfer_id, writer_closed=writer_closed):
                side.assembler.drop(transfer_id, writer_closed)
                pipe.send(m.Done())


def granted_by(side: ReceivingSide, grant: m.Grant) -> m.Granted:
    receiver = m.ReceiverName(instance_id=1, agent=side.agent.name)
    return m.Granted(grant=grant, receiver=receiver, max_prompt_tokens=1)


# The parent's part: the receiver, and the handshake that a processor would run.


async def met(side: ReceivingSide, pipe: Pipe) -> None:
    """A writer has met the receiver."""
    pipe.send(side.welcome)
    await confirmed(pipe)


async def confirmed(pipe: Pipe) -> None:
    assert m.parse(m.ENCODE_CONTROL_REPLY, await pipe.receive()) == m.Done()


async def reserved(side: ReceivingSide) -> m.Granted:
    message = m.Reserve(transfer_id=new_id(), writer_instance_id=WRITER)
    return granted_by(side, await side.assembler.reserve(message))


async def shake_hands(side: ReceivingSide, pipe: Pipe, granted: m.Granted) -> torch.Tensor:
    """Run the handshake of one transfer to its end and take its embedding."""
    transfer_id = granted.grant.transfer_id
    handshake = Handshake(transfer_id)
    handshake.granted(granted.grant)

    async def act(actions: list[Action]) -> None:
        total = handshake.total_tokens or 0
        for action in actions:
            match action:
                case TryGrant():
                    more = side.assembler.try_grant(transfer_id, total)
                    await act(handshake.granted(more) if more else handshake.no_blocks())
                case WaitForGrant(sent_tokens):
                    more = await side.assembler.resume(transfer_id, sent_tokens, total)
                    await act(handshake.granted(more))
                case ForwardGrant(more):
                    pipe.send(m.Forward(grant=more))

    while handshake.state is not Shaking.DONE:
        match m.parse(m.ENCODE_EVENT, await pipe.receive()):
            case m.Sized() as sized:
                await act(handshake.sized(sized))
            case m.Sent() as sent:
                await act(handshake.sent(sent))
    return await side.assembler.take(transfer_id)


async def fetch(side: ReceivingSide, pipe: Pipe, seed: int, num_tokens: int) -> torch.Tensor:
    """One embedding from another process, from its reservation to its end."""
    granted = await reserved(side)
    transfer_id = granted.grant.transfer_id
    pipe.send(encode_of(seed, num_tokens, granted))
    rows = await shake_hands(side, pipe, granted)
    pipe.send(m.Close(transfer_id=transfer_id))
    await confirmed(pipe)
    side.assembler.drop(transfer_id)
    return rows


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(3 * DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def a_receiver(side: ReceivingSide) -> AsyncIterator[ReceivingSide]:
    """Started; stopped at the end, which has a deadline."""
    await side.start()
    try:
        async with asyncio.timeout(6 * DEADLINE_S):
            yield side
    finally:
        await side.stop()


@contextmanager
def not_polling(side: ReceivingSide) -> Iterator[None]:
    """The receiver's NIXL thread stands still: what is sent to it stays in the sockets."""
    go_on = threading.Event()
    side.agent._commands.put(go_on.wait)
    try:
        yield
    finally:
        go_on.set()


@contextmanager
def two_writers(
    disturb: Disturb, through_sockets: bool
) -> Iterator[tuple[BaseProcess, Pipe, Pipe]]:
    """The writer that is disturbed, as process and pipe, and the pipe of a healthy one."""
    with (
        a_process(write_for_parent, GRANTED, disturb, WIDE, through_sockets) as (process, pipe),
        a_process(write_for_parent, GRANTED, None, WIDE) as (_, healthy),
    ):
        yield process, pipe, healthy
