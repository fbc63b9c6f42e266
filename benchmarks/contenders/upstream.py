# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Dynamo's own embedding transfer, made and used as its SGLang workers do.

The transfer request crosses as JSON over the benchmark's channel, as it would inside the request
to the prefill worker.
"""

import time
from typing import Any, ClassVar

import torch
from dynamo.common.constants import EmbeddingTransferMode
from dynamo.common.multimodal import (
    EMBEDDING_RECEIVER_FACTORIES,
    EMBEDDING_SENDER_FACTORIES,
    TransferRequest,
)

from benchmarks.pair import Receiver, Writer


class UpstreamWriter(Writer):
    """The sender of one mode. Its copy of the embedding is part of what it does."""

    mode: ClassVar[EmbeddingTransferMode]

    async def start(self, rows: torch.Tensor) -> None:
        self._sender = EMBEDDING_SENDER_FACTORIES[self.mode]()

    async def hand_off(self, rows: torch.Tensor) -> dict[str, float]:
        started = time.monotonic()
        request, sent = await self._sender.send_embeddings(rows)
        arrived: float = await self.peer.ask("receive", request.model_dump_json())
        await sent
        return {self.mode.value: arrived - started}


class UpstreamReceiver(Receiver):
    """The receiver of one mode, with its own idea of how much memory it needs."""

    mode: ClassVar[EmbeddingTransferMode]

    async def start(self) -> None:
        self._receiver = EMBEDDING_RECEIVER_FACTORIES[self.mode]()

    async def answer(self, op: str, body: Any) -> float:
        request = TransferRequest.model_validate_json(body)
        tensor_id, self.rows = await self._receiver.receive_embeddings(request)
        arrived = time.monotonic()
        self._receiver.release_tensor(tensor_id)  # the bytes stay until the next hand-off
        return arrived


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
