# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Our own hand-off, with the settings that workers start with.

The processor's decisions (core/handshake.py) are made beside the writer and reach the receiver
over the benchmark's own channel: control messages are not Dynamo RPCs here, and take one hop where
a deployment has two. As in a deployment, the default grant is there before the embedding exists
and the rest is tried for while the vision tower would run. So there are two series: `ours` starts
when the embedding exists, `ours + grants` with the reservation, as if the tower took no time.

`size-first` is the same code without that: nothing is asked for before the embedding exists, then
one grant for all of it. It shows what the default grant saves: one control message and its answer,
here within a millisecond, over Dynamo's RPC and two hops more.

`cached` hands over an embedding that the encode worker has kept in its pool.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import torch

from benchmarks.channel import Channel, Failed
from benchmarks.sides import Receiver, Writer, wait_until
from benchmarks.workload import SETTINGS, HandOff, Order, PoolShape, Setup
from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.layout import Layout, blocks_for
from dynamo.sglang_mm_resume.core.messages import Reserve, Sized, Welcome
from dynamo.sglang_mm_resume.core.receiver import Receiver as ReceiverCore
from dynamo.sglang_mm_resume.core.receiver import ReceiverLimits
from dynamo.sglang_mm_resume.transport.assembler import Assembler
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.staging import Stored
from dynamo.sglang_mm_resume.transport.writer import Writer as Transport

Memory = TypeVar("Memory", bound=PoolMemory)


class RationedPool(BlockPool):
    """Grants at most `ration` blocks at once, whatever is asked for."""

    def __init__(self, shape: PoolShape) -> None:
        super().__init__(shape.pool_blocks, SETTINGS.block_size, shape.default_blocks)
        self.ration = shape.ration

    def try_alloc_blocks(self, num_blocks: int, owner: str) -> Lease | None:
        return super().try_alloc_blocks(min(num_blocks, self.ration), owner)


class OurReceiver(Receiver):
    """What a prefill worker has, less the engine."""

    async def start(self, setup: Setup) -> None:
        self._memory = self._make_memory(setup)
        self._threads = ThreadPoolExecutor(SETTINGS.thread_pool_size)
        self._agent = NixlAgent(f"prefill-{uuid4().hex}", self._memory, self._on_notice)
        await self._agent.start()
        self._use(PoolShape())

    async def answer(self, op: str, body: Any) -> Any:
        match op:
            case "hello":
                return self._welcome()
            case "use":
                await self._assembler.close()
                self._use(body)
            case "reserve":
                grant = await self._assembler.reserve(body)
                return grant, self._assembler.receiver.waited_s(body.transfer_id)
            case "try_grant":
                return self._assembler.try_grant(*body)
            case "resume":
                grant = await self._assembler.resume(*body)
                return grant, self._assembler.receiver.waited_s(grant.transfer_id)
            case "take":
                self.rows[body] = await self._assembler.take(body)
                return time.monotonic()
            case "drop":
                self._assembler.drop(body, writer_closed=True)
        return None

    def touch(self) -> None:
        self._memory.tensor.zero_()

    async def stop(self) -> None:
        await self._assembler.close()
        await self._agent.stop()
        self._threads.shutdown()
        del self._assembler, self._agent, self._memory

    def _make_memory(self, setup: Setup) -> PoolMemory:
        return make_memory(setup, PoolMemory)

    def _use(self, shape: PoolShape) -> None:
        limits = _limits(self._memory.layout, shape)
        self._assembler = Assembler(
            ReceiverCore(RationedPool(shape), limits),
            self._memory,
            self._threads,
            _settled,
            self._agent.expect,
        )

    def _on_notice(self, peer: str, payload: bytes) -> None:
        self._assembler.on_notice(peer, payload)

    def _welcome(self) -> Welcome:
        return Welcome(
            layout=self._memory.layout,
            agent=self._agent.name,
            metadata=self._agent.metadata,
            base_address=self._memory.tensor.data_ptr(),
            num_blocks=self._memory.num_blocks,
            memory=self._agent.memory_kind,
            device_id=self._agent.device_id,
        )


class OurWriter(Writer):
    """What an encode worker has, less the vision tower; and the processor's decisions."""

    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        self._memory = self._make_memory(setup)
        self._threads = ThreadPoolExecutor(SETTINGS.thread_pool_size)
        self._agent = self._make_agent()
        await self._agent.start()
        self._welcome: Welcome = await self.peer.ask("hello")
        await self._agent.connect(self._welcome)
        self._shape = PoolShape()
        self._transport = self._make_transport(self._shape)

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        shape = order.shape
        if shape.size_first:
            shape = shape.of_exactly(blocks_for(len(rows), SETTINGS.block_size))
        await self._use(shape)
        transfer = _Transfer(self._transport, self.peer, self._welcome, rows, number, order)
        try:
            return await transfer.run()
        finally:
            await self._transport.close(transfer.transfer_id)
            await self.peer.ask("drop", transfer.transfer_id)

    def touch(self) -> None:
        self._memory.tensor.zero_()

    async def stop(self) -> None:
        await self._transport.close_all()
        await self._agent.stop()
        self._threads.shutdown()
        del self._transport, self._agent, self._memory

    def _make_memory(self, setup: Setup) -> PoolMemory:
        return make_memory(setup, PoolMemory)

    def _make_agent(self) -> NixlAgent:
        return NixlAgent(f"encode-{uuid4().hex}", self._memory, ignore)

    async def _use(self, shape: PoolShape) -> None:
        """Cut both pools anew; their memory and its registration stay."""
        if shape == self._shape:
            return
        await self._transport.close_all()
        self._shape, self._transport = shape, self._make_transport(shape)
        await self.peer.ask("use", shape)

    def _make_transport(self, shape: PoolShape) -> Transport:
        return Transport(
            BlockPool(shape.pool_blocks, SETTINGS.block_size, shape.default_blocks),
            self._memory,
            self._agent,
            self._threads,
            SETTINGS.queue_size,
            SETTINGS.drain_s,
        )


class _Transfer:
    """One hand-off: the encode worker's part, and the processor's beside it."""

    def __init__(
        self,
        transport: Transport,
        peer: Channel,
        welcome: Welcome,
        rows: torch.Tensor,
        number: int,
        order: Order,
    ) -> None:
        self.transfer_id = uuid4().hex
        self._handshake = Handshake(self.transfer_id)
        self._transport = transport
        self._peer = peer
        self._welcome = welcome
        self._rows = rows
        self._order = order
        num_tokens = len(rows)
        self._sized = Sized(total_tokens=num_tokens, grid=(1, 1, num_tokens), content_hash="0" * 16)
        self._key = f"{number}-{num_tokens}" if order.shape.cached else self.transfer_id
        self._sent: list[float] = []  # when each grant was filled
        self._granted: list[float] = []  # when each grant was at the writer
        self._waits: list[float] = []
        self._tried = asyncio.Event()
        self._acting = asyncio.Lock()

    async def run(self) -> HandOff:
        size_first = self._order.shape.size_first
        if size_first:
            await wait_until(self._order.at)
        async with asyncio.TaskGroup() as tasks:
            asked = time.monotonic()
            outgoing = await self._reserve(tasks)
            if not size_first:
                await wait_until(self._order.at)
            exists = asked if size_first else time.monotonic()
            taken = tasks.create_task(self._peer.ask("take", self.transfer_id))
            with self._source() as source:
                async for sent in outgoing.send(source):
                    self._sent.append(time.monotonic())
                    # The processor is a process of its own: the writer never waits for it.
                    tasks.create_task(self._act(self._handshake.sent(sent)))
        arrived: float = taken.result()
        seconds = self._series(arrived - exists, arrived - asked)
        return HandOff(self.transfer_id, arrived, seconds, self._details(exists))

    @contextmanager
    def _source(self) -> Iterator[Stored | torch.Tensor]:
        """The embedding in our pool where it has room, as an encode worker keeps it."""
        stored = self._transport.find(self._key)
        stored = stored or self._transport.store(self._key, self._sized, self._rows)
        if stored is None and self._order.shape.cached:
            raise Failed("the pool is too small to keep it")
        try:
            yield self._rows if stored is None else stored
        finally:
            if stored is not None:
                stored.unpin()

    def _series(self, since_it_exists: float, since_reserve: float) -> dict[str, float]:
        shape = self._order.shape
        if shape.size_first:
            return {"size-first": since_it_exists}
        if shape.cached:
            return {"cached": since_it_exists}
        return {"ours": since_it_exists, "ours + grants": since_reserve}

    async def _reserve(self, tasks: asyncio.TaskGroup) -> Any:
        """The first grant; and more, which is tried for as soon as the size is known."""
        reserve = Reserve(transfer_id=self.transfer_id, writer_instance_id=1)
        grant, waited_s = await self._peer.ask("reserve", reserve)
        self._waits.append(waited_s)
        self._handshake.granted(grant)
        self._granted.append(time.monotonic())
        outgoing = self._transport.open(grant, self._welcome.agent, self._welcome.num_blocks)
        if actions := self._handshake.sized(self._sized):
            tasks.create_task(self._act(actions))
            await self._tried.wait()
        return outgoing

    async def _act(self, actions: Iterable[Action]) -> None:
        pending = deque(actions)
        async with self._acting:  # grants reach the writer in order
            while pending:
                pending.extend(await self._act_once(pending.popleft()))

    async def _act_once(self, action: Action) -> list[Action]:
        match action:
            case TryGrant():
                wish = (self.transfer_id, self._handshake.total_tokens)
                tried = await self._peer.ask("try_grant", wish)
                self._tried.set()
                return self._handshake.granted(tried) if tried else self._handshake.no_blocks()
            case WaitForGrant(sent_tokens):
                rest = (self.transfer_id, sent_tokens, self._handshake.total_tokens)
                grant, waited_s = await self._peer.ask("resume", rest)
                self._waits.append(waited_s)
                return self._handshake.granted(grant)
            case ForwardGrant(grant):
                self._transport.forward(grant)
                self._granted.append(time.monotonic())
        return []

    def _details(self, exists: float) -> dict[str, list[float]]:
        """`stall`: per grant after the first, how long the writer had nothing left to fill."""
        filled = zip(self._sent[:-1], self._granted[1:], strict=True)
        return {
            "exists": [exists],
            "stall": [max(0.0, granted - sent) for sent, granted in filled],
            "buffer wait": self._waits,
        }


def make_memory(setup: Setup, kind: type[Memory]) -> Memory:
    """A pool as large as workers have it by default."""
    layout = Layout(
        model="benchmark",
        width=setup.hidden,
        dtype="bfloat16",
        block_size=SETTINGS.block_size,
    )
    device = torch.device(setup.pool_device or setup.device)
    return kind(layout, SETTINGS.pool_blocks, device, SETTINGS.max_kept_bytes)


def ignore(peer: str, payload: bytes) -> None:
    """Writers get no notices."""


def _limits(layout: Layout, shape: PoolShape) -> ReceiverLimits:
    return ReceiverLimits(
        wait_timeout_s=SETTINGS.bootstrap_timeout_s,
        max_waiting=SETTINGS.max_waiting_transfers,
        max_assembled_tokens=SETTINGS.max_assembled_mib * 2**20 // layout.token_bytes,
        chunk_blocks=SETTINGS.chunk_blocks,
        resumable=SETTINGS.use_block_allocator,
        settle_interval_s=SETTINGS.heartbeat_interval_s,
        max_quarantined_blocks=int(SETTINGS.max_quarantined_fraction * shape.pool_blocks),
        adaptive=shape.adaptive,
    )


async def _settled(writer: int, transfer_id: str) -> bool:
    return True
