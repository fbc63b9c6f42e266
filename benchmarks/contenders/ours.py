# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Our own hand-off, with the settings that workers start with.

The processor's decisions (core/handshake.py) are made on the writer's side and reach the receiver
over the benchmark's own channel: control messages are not Dynamo RPCs here. As in a deployment,
the default grant is there before the embedding exists and the rest is tried for while the vision
tower would run. So there are two series: `ours` starts when the embedding exists, `ours + grants`
starts with the reservation, as if the tower took no time at all.
"""

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import torch

from benchmarks.pair import Channel, Receiver, Workload, Writer
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.messages import Grant, Reserve, Sized, Welcome
from dynamo.sglang_mm_resume.core.receiver import Receiver as ReceiverCore
from dynamo.sglang_mm_resume.core.receiver import ReceiverLimits
from dynamo.sglang_mm_resume.transport.assembler import Assembler
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.writer import Writer as Transport
from dynamo.sglang_mm_resume.workers.pool import make_pool

SETTINGS = Settings(pool_device="cpu")


class OurReceiver(Receiver):
    """What a prefill worker has, less the engine."""

    async def start(self) -> None:
        self._layout = _layout(self.workload)
        self._pool = make_pool(SETTINGS, self._layout, None)
        self._threads = ThreadPoolExecutor(SETTINGS.thread_pool_size)
        self._agent = NixlAgent(f"prefill-{uuid4().hex}", self._pool.memory, self._on_notice)
        await self._agent.start()
        self._assembler = Assembler(
            ReceiverCore(self._pool.blocks, _limits(self._layout)),
            self._pool.memory,
            self._threads,
            _settled,
            self._agent.expect,
        )

    async def answer(self, op: str, body: Any) -> Any:
        match op:
            case "hello":
                return self._welcome()
            case "reserve":
                return await self._assembler.reserve(body)
            case "try_grant":
                return self._assembler.try_grant(*body)
            case "resume":
                return await self._assembler.resume(*body)
            case "take":
                self.rows = await self._assembler.take(body)
                return time.monotonic()
            case "drop":
                self._assembler.drop(body, writer_closed=True)
        return None

    def _on_notice(self, peer: str, payload: bytes) -> None:
        self._assembler.on_notice(peer, payload)

    def _welcome(self) -> Welcome:
        memory = self._pool.memory
        return Welcome(
            layout=self._layout,
            agent=self._agent.name,
            metadata=self._agent.metadata,
            base_address=memory.tensor.data_ptr(),
            num_blocks=memory.num_blocks,
            memory=self._agent.memory_kind,
            device_id=self._agent.device_id,
        )


class OurWriter(Writer):
    """What an encode worker has, less the vision tower; and the processor's decisions."""

    def __init__(self, workload: Workload, peer: Channel) -> None:
        super().__init__(workload, peer)
        pool = make_pool(SETTINGS, _layout(workload), None)
        self._threads = ThreadPoolExecutor(SETTINGS.thread_pool_size)
        self._agent = NixlAgent(f"encode-{uuid4().hex}", pool.memory, _ignore)
        self._transport = Transport(
            pool.blocks,
            pool.memory,
            self._agent,
            self._threads,
            SETTINGS.queue_size,
            SETTINGS.drain_s,
        )

    async def start(self, rows: torch.Tensor) -> None:
        await self._agent.start()
        self._welcome: Welcome = await self.peer.ask("hello")
        await self._agent.connect(self._welcome)

    async def hand_off(self, rows: torch.Tensor) -> dict[str, float]:
        handshake = Handshake(uuid4().hex)
        try:
            return await self._hand_off(handshake, rows)
        finally:
            await self._transport.close(handshake.transfer_id)
            await self.peer.ask("drop", handshake.transfer_id)

    async def _hand_off(self, handshake: Handshake, rows: torch.Tensor) -> dict[str, float]:
        transfer_id = handshake.transfer_id
        asked = time.monotonic()
        reserve = Reserve(transfer_id=transfer_id, writer_instance_id=1)
        grant: Grant = await self.peer.ask("reserve", reserve)
        handshake.granted(grant)
        outgoing = self._transport.open(grant, self._welcome.agent, self._welcome.num_blocks)
        sized = Sized(total_tokens=len(rows), grid=(1, 1, len(rows)), content_hash="0" * 16)
        await self._act(handshake, handshake.sized(sized))

        exists = time.monotonic()
        taken = asyncio.ensure_future(self.peer.ask("take", transfer_id))
        async for sent in outgoing.send(rows):
            await self._act(handshake, handshake.sent(sent))
        arrived: float = await taken
        return {"ours": arrived - exists, "ours + grants": arrived - asked}

    async def _act(self, handshake: Handshake, actions: Iterable[Action]) -> None:
        transfer_id = handshake.transfer_id
        for action in actions:
            match action:
                case TryGrant():
                    wish = (transfer_id, handshake.total_tokens)
                    if grant := await self.peer.ask("try_grant", wish):
                        await self._act(handshake, handshake.granted(grant))
                case WaitForGrant(sent_tokens):
                    body = (transfer_id, sent_tokens, handshake.total_tokens)
                    grant = await self.peer.ask("resume", body)
                    await self._act(handshake, handshake.granted(grant))
                case ForwardGrant(grant):
                    self._transport.forward(grant)


def _layout(workload: Workload) -> Layout:
    return Layout(
        model="benchmark",
        width=workload.hidden,
        dtype="bfloat16",
        block_size=SETTINGS.block_size,
    )


def _limits(layout: Layout) -> ReceiverLimits:
    return ReceiverLimits(
        wait_timeout_s=SETTINGS.bootstrap_timeout_s,
        max_waiting=SETTINGS.max_waiting_transfers,
        max_assembled_tokens=SETTINGS.max_assembled_mib * 2**20 // layout.token_bytes,
        chunk_blocks=SETTINGS.chunk_blocks,
        resumable=SETTINGS.use_block_allocator,
        settle_interval_s=SETTINGS.heartbeat_interval_s,
        max_quarantined_blocks=int(SETTINGS.max_quarantined_fraction * SETTINGS.pool_blocks),
    )


async def _settled(writer: int, transfer_id: str) -> bool:
    return True


def _ignore(peer: str, payload: bytes) -> None:
    """Writers get no notices."""
