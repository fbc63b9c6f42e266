# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Ours as it is deployed: the handlers of three workers, over Dynamo's RPC between three processes.

Writer 0 is the processor, writer 1 the encode worker, the receiver the prefill worker. Only the
vision tower and the engine are left out: the tower takes `TOWER_S` and returns the benchmark's
embedding. Of the pools, only the receiver's is cut as an order says.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import torch
from dynamo.common.utils.runtime import create_runtime

from benchmarks.contenders.ours import OurReceiver, ignore, make_memory
from benchmarks.sides import Writer, embeddings
from benchmarks.workload import SETTINGS, HandOff, Order, PoolShape, Setup
from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent
from dynamo.sglang_mm_resume.transport.writer import Writer as Transport
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.encode import EncodeHandler, Receivers
from dynamo.sglang_mm_resume.workers.hand_off import Destination, Item, Peers
from dynamo.sglang_mm_resume.workers.hand_off import HandOff as Processor
from dynamo.sglang_mm_resume.workers.lifecycle import Admission
from dynamo.sglang_mm_resume.workers.media import Content
from dynamo.sglang_mm_resume.workers.prefill import TransferHandler
from dynamo.sglang_mm_resume.workers.sglang_encoder import Prepared

NAMESPACE: Final = "benchmark"
#: Of a small picture on a GPU: long enough for a try to be answered meanwhile.
TOWER_S: Final = 0.01
MAX_PROMPT_TOKENS: Final = 2**20
POLL_S: Final = 0.0005

Answers = AsyncGenerator[dict[str, Any], None]


class DeployedReceiver(OurReceiver):
    """The prefill worker's control endpoint."""

    async def start(self, setup: Setup) -> None:
        runtime = _runtime(setup)
        self._stamps: dict[str, Stamps] = {}
        self._control = runtime.endpoint(f"{NAMESPACE}.prefill.mm_transfer")
        await super().start(setup)
        self._serving = asyncio.ensure_future(
            self._control.serve_endpoint(self._mm_transfer, graceful_shutdown=False)
        )

    async def answer(self, op: str, body: Any) -> Any:
        match op:
            case "stamp":
                self._stamps[body.key] = body
            case "stamps":
                while body not in self._stamps:
                    await asyncio.sleep(POLL_S)
                return self._stamps.pop(body)
            case "take":
                while body not in self._assembler.receiver.live:
                    await asyncio.sleep(POLL_S)
                return await super().answer(op, body)
            case _:
                return await super().answer(op, body)

    def _use(self, shape: PoolShape) -> None:
        super()._use(shape)
        self._handler = TransferHandler(
            self._memory.layout,
            self._memory,
            self._agent,
            self._assembler,
            Admission(),
            self._control.connection_id(),
            MAX_PROMPT_TOKENS,
        )

    async def _mm_transfer(self, payload: Any, context: Any) -> Answers:
        async for answer in self._handler.mm_transfer(payload, context):
            yield answer


@dataclass(slots=True)
class Stamps:
    """What the encode worker saw of one hand-off, in monotonic seconds."""

    key: str
    exists: float = 0.0
    sent: list[float] = field(default_factory=list)
    forwarded: list[float] = field(default_factory=list)


class DeployedWriter(Writer):
    """The processor or the encode worker."""

    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        runtime = _runtime(setup)
        self._role = _Processor(self, runtime) if self.index == 0 else _Encode(self, setup, runtime)
        await self._role.start()

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        assert isinstance(self._role, _Processor)
        return await self._role.hand_off(len(rows), order)


class _Processor:
    def __init__(self, side: DeployedWriter, runtime: Any) -> None:
        self._peer = side.peer
        self._runtime = runtime
        self._shape = PoolShape()

    async def start(self) -> None:
        async def client(endpoint: str) -> Any:
            return await self._runtime.endpoint(f"{NAMESPACE}.{endpoint}").client()

        names = ("prefill.mm_transfer", "encoder.generate", "encoder.mm_transfer")
        self._clients = control, encode, encode_control = [await client(name) for name in names]
        self._peers = Peers(control, control, encode, encode_control)
        prefill = Workers("prefill", control, control, SETTINGS)
        workers = LeastOutstanding(
            control,
            "prefill",
            SETTINGS.max_requests,
            SETTINGS.bootstrap_timeout_s,
            prefill.answers_ping,
        )
        self._hand_off = Processor(SETTINGS, self._peers, workers)

    async def hand_off(self, num_tokens: int, order: Order) -> HandOff:
        for client in self._clients:
            await client.wait_for_instances()
        if order.shape != self._shape:
            self._shape = order.shape
            await self._peer.ask("use", order.shape)
        key = f"{uuid4().hex}:{num_tokens}"
        item = Item("image 1", media=Media(modality="image", url=key))
        (prefill,) = self._peers.prefill_transfer.instance_ids()
        destination = Destination(prefill, PromptBudget(1, MAX_PROMPT_TOKENS), priority=0)
        transfer_id = item.handshake.transfer_id
        try:
            taking = asyncio.ensure_future(self._peer.ask("take", transfer_id))
            await self._hand_off.move([item], destination)
            arrived: float = await taking
            stamps: Stamps = await self._peer.ask("stamps", key)
        finally:
            await self._peer.ask("drop", transfer_id)
        stalls = zip(stamps.sent[:-1], stamps.forwarded, strict=True)
        details = {"stall": [max(0.0, forwarded - sent) for sent, forwarded in stalls]}
        return HandOff(transfer_id, arrived, {"ours": arrived - stamps.exists}, details)


class _Encode:
    """The encode worker with its real handler; itself in the place of tower and media."""

    def __init__(self, side: DeployedWriter, setup: Setup, runtime: Any) -> None:
        self._peer = side.peer
        self._setup = setup
        self._runtime = runtime
        self._rows = embeddings(setup, 0)  # what the processor's side compares with
        self._stamps: dict[str, Stamps] = {}
        self._memory = make_memory(setup, PoolMemory)
        self._threads = ThreadPoolExecutor(SETTINGS.thread_pool_size)
        self._agent = NixlAgent(f"encode-{uuid4().hex}", self._memory, ignore)

    async def start(self) -> None:
        await self._agent.start()
        generate = self._runtime.endpoint(f"{NAMESPACE}.encoder.generate")
        control = self._runtime.endpoint(f"{NAMESPACE}.encoder.mm_transfer")
        prefill = await self._runtime.endpoint(f"{NAMESPACE}.prefill.mm_transfer").client()
        transport = Transport(
            BlockPool(SETTINGS.pool_blocks, SETTINGS.block_size, SETTINGS.default_blocks),
            self._memory,
            self._agent,
            self._threads,
            SETTINGS.queue_size,
            SETTINGS.drain_s,
        )
        receivers = Receivers(
            prefill,
            self._agent,
            self._memory.layout,
            generate.connection_id(),
            SETTINGS.bootstrap_timeout_s,
        )
        self._handler = EncodeHandler(SETTINGS, self, self, transport, receivers)  # type: ignore[arg-type]
        self._serving = [
            asyncio.ensure_future(generate.serve_endpoint(self._generate, graceful_shutdown=False)),
            asyncio.ensure_future(control.serve_endpoint(self._control, graceful_shutdown=False)),
        ]

    async def _generate(self, payload: Any, context: Any) -> Answers:
        key, transfer_id = payload["media"]["url"], payload["transfer_id"]
        stamps = self._stamps[transfer_id] = self._stamps[key] = Stamps(key)
        async for event in self._handler.generate(payload, context):
            if event["op"] == "sent":
                stamps.sent.append(time.monotonic())
            yield event
        del self._stamps[transfer_id], self._stamps[key]
        await self._peer.ask("stamp", stamps)

    async def _control(self, payload: Any, context: Any) -> Answers:
        async for answer in self._handler.mm_transfer(payload, context):
            if payload["op"] == "forward":
                self._stamps[payload["grant"]["transfer_id"]].forwarded.append(time.monotonic())
            yield answer

    # In the place of the media loader, and of the tower.

    async def fetch(self, media: Media) -> Content:
        url = media.url.encode()
        return Content(url, sha256(url).hexdigest())

    async def decode(self, content: Content) -> str:
        return content.data.decode()

    async def prepare(self, key: str) -> Prepared:
        num_tokens = int(key.rpartition(":")[2])
        return Prepared(num_tokens, (1, 2, 2 * num_tokens), key)

    async def encode(self, prepared: Prepared) -> torch.Tensor:
        await asyncio.sleep(TOWER_S)
        self._stamps[prepared.context].exists = time.monotonic()
        return self._rows[: prepared.total_tokens]


def _runtime(setup: Setup) -> Any:
    """On loopback, without a server. Dynamo logs every call: to a file, as in a deployment."""
    with (Path(setup.scratch) / f"{os.getpid()}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.pop("DYN_SYSTEM_PORT", None)
    os.environ |= {
        "DYN_FILE_KV": f"{setup.scratch}/discovery",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }
    runtime, _ = create_runtime("file", "tcp", "zmq")
    return runtime
