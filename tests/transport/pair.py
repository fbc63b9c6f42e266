# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A writer and a receiver with real NIXL agents, joined as a processor would join them."""

import asyncio
import itertools
import os
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch

from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.messages import Reserve, Sized, Welcome
from dynamo.sglang_mm_resume.core.receiver import Receiver, ReceiverLimits
from dynamo.sglang_mm_resume.transport.assembler import Assembler
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.writer import Writer

BLOCK_SIZE = 16
LAYOUT = Layout(model="test", width=96, dtype="bfloat16", block_size=BLOCK_SIZE)
DEADLINE_S = 10.0

_numbers = itertools.count()


def rows_of(seed: int, num_tokens: int, layout: Layout = LAYOUT) -> torch.Tensor:
    """An embedding that no other seed has, the same in every process."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-(2**15), 2**15, (num_tokens, layout.width), generator=generator)
    return rows.to(torch.int16).view(torch.bfloat16)


def same_bits(got: torch.Tensor, sent: torch.Tensor) -> bool:
    return got.shape == sent.shape and torch.equal(got.view(torch.int16), sent.view(torch.int16))


def new_id() -> str:
    return f"transfer-{os.getpid()}-{next(_numbers)}"


class ReceivingSide:
    """What a prefill worker has of this component."""

    def __init__(
        self, num_blocks: int, default_blocks: int, layout: Layout = LAYOUT, **limits: Any
    ) -> None:
        defaults: dict[str, Any] = {
            "wait_timeout_s": DEADLINE_S,
            "max_waiting": 256,
            "max_assembled_tokens": 10**6,
            "chunk_blocks": 16,
            "resumable": True,
            "settle_interval_s": 0.05,
            "max_quarantined_blocks": num_blocks,
        }
        self.pool = BlockPool(num_blocks, BLOCK_SIZE, default_blocks)
        self.memory = PoolMemory(layout, num_blocks, torch.device("cpu"))
        self.receiver = Receiver(self.pool, ReceiverLimits(**defaults | limits))
        self.threads = ThreadPoolExecutor(2)
        self.agent = NixlAgent(f"prefill-{uuid.uuid4().hex}", self.memory, self._on_notice)
        self.assembler = Assembler(
            self.receiver, self.memory, self.threads, self._ask_writer, self.agent.expect
        )
        self.asked: list[tuple[int, str]] = []
        self.writer_is_settled = False

    def _on_notice(self, peer: str, payload: bytes) -> None:
        self.assembler.on_notice(peer, payload)

    async def _ask_writer(self, writer: int, transfer_id: str) -> bool:
        self.asked.append((writer, transfer_id))
        return self.writer_is_settled

    @property
    def welcome(self) -> Welcome:
        return Welcome(
            layout=self.memory.layout,
            agent=self.agent.name,
            metadata=self.agent.metadata,
            base_address=self.memory.tensor.data_ptr(),
            num_blocks=self.pool.num_blocks,
            memory="DRAM",
            device_id=0,
        )

    async def start(self) -> None:
        await self.agent.start()

    async def stop(self) -> None:
        await self.assembler.close()
        await self.agent.stop()
        self.threads.shutdown()


class WritingSide:
    """What an encode worker has of this component."""

    def __init__(self, num_blocks: int, layout: Layout = LAYOUT) -> None:
        self.pool = BlockPool(num_blocks, BLOCK_SIZE, 1)
        self.memory = PoolMemory(layout, num_blocks, torch.device("cpu"))
        self.threads = ThreadPoolExecutor(2)
        self.agent = NixlAgent(f"encode-{uuid.uuid4().hex}", self.memory, lambda peer, _: None)
        self.writer = Writer(self.pool, self.memory, self.agent, self.threads, 4, drain_s=0.05)

    async def start(self) -> None:
        await self.agent.start()

    async def stop(self) -> None:
        await self.writer.close_all()
        await self.agent.stop()
        self.threads.shutdown()


@asynccontextmanager
async def a_pair(
    receiver_blocks: int, writer_blocks: int, default_blocks: int, **limits: Any
) -> AsyncIterator[tuple[ReceivingSide, WritingSide]]:
    """Both sides in this process, connected; stopped and checked for leftovers afterwards."""
    tasks_before = asyncio.all_tasks()
    receiving = ReceivingSide(receiver_blocks, default_blocks, **limits)
    writing = WritingSide(writer_blocks)
    await receiving.start()
    await writing.start()
    try:
        await asyncio.wait_for(writing.agent.connect(receiving.welcome), DEADLINE_S)
        yield receiving, writing
    finally:
        await receiving.stop()
        await writing.stop()
    assert asyncio.all_tasks() == tasks_before
    for side in (receiving, writing):
        side.pool.check()


def nothing_stays(receiving: ReceivingSide, writing: WritingSide) -> None:
    """R16"""
    for side in (receiving, writing):
        side.pool.check()
        assert side.pool.stats().free == side.pool.num_blocks
    assert receiving.receiver.live == {}
    assert receiving.receiver.assembled_tokens == 0
    assert receiving.assembler.num_tasks == 0
    assert receiving.assembler.totals.malformed_notices == 0
    assert not receiving.receiver.oddities
    assert writing.writer.live == {}
    assert writing.agent.num_in_flight == 0


async def hand_over(
    receiving: ReceivingSide, writing: WritingSide, rows: torch.Tensor
) -> tuple[torch.Tensor, Handshake]:
    """One embedding from its reservation to its end, as a processor would run it."""
    transfer_id = new_id()
    handshake = Handshake(transfer_id)
    message = Reserve(transfer_id=transfer_id, writer_instance_id=1)
    grant = await receiving.assembler.reserve(message)
    handshake.granted(grant)
    outgoing = writing.writer.open(grant, receiving.agent.name, receiving.pool.num_blocks)

    async def act(actions: list[Action]) -> None:
        for action in actions:
            match action:
                case TryGrant():
                    more = receiving.assembler.try_grant(transfer_id, len(rows))
                    await act(handshake.granted(more) if more else handshake.no_blocks())
                case WaitForGrant(sent_tokens):
                    more = await receiving.assembler.resume(transfer_id, sent_tokens, len(rows))
                    await act(handshake.granted(more))
                case ForwardGrant(more):
                    writing.writer.forward(more)

    sized = Sized(total_tokens=len(rows), grid=(1, 2, 2), content_hash="0" * 16)
    async with asyncio.TaskGroup() as tasks:  # what waits for blocks must not hold the writer up
        tasks.create_task(act(handshake.sized(sized)))
        async for sent in outgoing.send(rows):
            tasks.create_task(act(handshake.sent(sent)))
    got = await receiving.assembler.take(transfer_id)
    await writing.writer.close(transfer_id)
    receiving.assembler.drop(transfer_id)
    return got, handshake
