# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Dynamo's own embedding transfer, made and used as its SGLang workers do.

The transfer request crosses as JSON over the benchmark's channel, as it would inside the request
to the prefill worker.
"""

import time
from typing import Any, ClassVar
from uuid import uuid4

import torch
from dynamo.common.constants import EmbeddingTransferMode
from dynamo.common.multimodal import (
    EMBEDDING_RECEIVER_FACTORIES,
    EMBEDDING_SENDER_FACTORIES,
    TransferRequest,
)

from benchmarks.channel import Channel
from benchmarks.sides import Receiver, Writer, wait_until
from benchmarks.workload import HandOff, Order, Setup


class UpstreamWriter(Writer):
    """The sender of one mode. Its copy of the embedding is part of what it does."""

    mode: ClassVar[EmbeddingTransferMode]

    def __init__(self, index: int, peer: Channel) -> None:
        super().__init__(index, peer)
        self._sender: Any = None

    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        if self._sender is None:
            self._sender = EMBEDDING_SENDER_FACTORIES[self.mode]()

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        key = uuid4().hex
        await wait_until(order.at)
        started = time.monotonic()
        request, sent = await self._sender.send_embeddings(rows)
        arrived: float = await self.peer.ask("receive", (key, request.model_dump_json()))
        await sent
        return HandOff(key, arrived, {self.mode.value: arrived - started})


class UpstreamReceiver(Receiver):
    """The receiver of one mode, with its own idea of how much memory it needs."""

    mode: ClassVar[EmbeddingTransferMode]

    def __init__(self) -> None:
        super().__init__()
        self._receiver: Any = None
        self._ids: dict[str, int] = {}

    async def start(self, setup: Setup) -> None:
        if self._receiver is None:
            self._receiver = EMBEDDING_RECEIVER_FACTORIES[self.mode]()

    async def answer(self, op: str, body: Any) -> float:
        key, text = body
        request = TransferRequest.model_validate_json(text)
        self._ids[key], self.rows[key] = await self._receiver.receive_embeddings(request)
        return time.monotonic()

    def release(self, key: str) -> None:
        super().release(key)
        if key in self._ids:
            self._receiver.release_tensor(self._ids.pop(key))


class LocalWriter(UpstreamWriter):
    mode = EmbeddingTransferMode.LOCAL


class LocalReceiver(UpstreamReceiver):
    mode = EmbeddingTransferMode.LOCAL


class NixlWriteWriter(UpstreamWriter):
    mode = EmbeddingTransferMode.NIXL_WRITE


class NixlWriteReceiver(UpstreamReceiver):
    mode = EmbeddingTransferMode.NIXL_WRITE


class NixlReadWriter(UpstreamWriter):
    mode = EmbeddingTransferMode.NIXL_READ


class NixlReadReceiver(UpstreamReceiver):
    mode = EmbeddingTransferMode.NIXL_READ
