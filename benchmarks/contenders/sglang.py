# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's own hand-over from its encoder server, by its own classes, private names included.

What is measured is what SGLang runs between the embedding in the encoder and the tensor that goes
into its multimodal processor: `_push_embedding_to_prefill` there; here `_recv_mm_data`, as the
tokenizer manager calls it, or `process_waiting_requests`, as the scheduler does on every turn of
its loop. The HTTP requests that announce an item come before the embedding exists and are left
out, and so is whatever else the loop of a scheduler does: it only turns here. Where the tokenizer
manager receives, the tensor has yet to go to the scheduler's process, as with ours.

The encoder is a real one, of the demo's model; the embedding that it hands over is the benchmark's.
"""

import asyncio
import io
import time
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final
from uuid import uuid4

import torch
import zmq
from sglang.srt.disaggregation.encoder.receiver import (
    EmbeddingData,
    MMReceiverHTTP,
    WaitingZmqRequest,
    create_part_req_id,
)
from sglang.srt.disaggregation.encoder.runtime import _push_embedding_to_prefill
from sglang.srt.disaggregation.encoder.server import MMEncoder
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.runtime_context import publish
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.network import get_zmq_socket_on_host

from benchmarks.channel import Channel
from benchmarks.sides import Receiver, Writer, wait_until
from benchmarks.workload import HandOff, Order

MODEL: Final = Path(__file__).parents[2] / "examples" / "demo_model" / "weights"
#: Only its presence matters: nothing is asked over HTTP.
ENCODER_URLS: Final = ["http://127.0.0.1:0"]


class SglangWriter(Writer):
    """An encoder. Each hand-off stages its embedding as the vision tower's end would."""

    backend: ClassVar[str]

    def __init__(self, index: int, peer: Channel) -> None:
        super().__init__(index, peer)
        args = _publish(self.backend, encoder_only=True)
        with redirect_stderr(io.StringIO()):  # bars of the model's loading
            self._encoder = MMEncoder(args, dist_init_method="tcp://127.0.0.1:0", rank=0)

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        key = uuid4().hex
        host, port = await self.peer.ask("expect", key)
        part = create_part_req_id(key, 0)
        request = {"req_id": part, **await self._announce(part, host, port)}
        taken = asyncio.ensure_future(self.peer.ask("take", key))
        await wait_until(order.at)
        started = time.monotonic()
        state = self._encoder._acquire_encode_ref(part)
        grid = torch.tensor([[1, 2, 2 * len(rows)]])
        self._encoder._stage_embedding(EmbeddingData(part, 1, 0, grid, Modality.IMAGE, rows))
        await self._encoder._release_encode_ref(state)
        await _push_embedding_to_prefill(self._encoder, request)
        arrived: float = await taken
        return HandOff(key, arrived, {self.backend: arrived - started})

    async def _announce(self, part: str, host: str, port: int) -> dict[str, Any]:
        """What the encoder is told of the receiver before it encodes."""
        return {"prefill_host": host, "embedding_port": port}


class SglangReceiver(Receiver):
    backend: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._receiver = self._make_receiver(_publish(self.backend, language_only=True))

    def _make_receiver(self, args: ServerArgs) -> MMReceiverHTTP:
        return MMReceiverHTTP(args, encode_urls=ENCODER_URLS)


class ToTokenizerWriter(SglangWriter):
    backend = "zmq_to_tokenizer"


class ToTokenizerReceiver(SglangReceiver):
    """The tokenizer manager: a socket per request."""

    backend = "zmq_to_tokenizer"

    def __init__(self) -> None:
        super().__init__()
        self._sockets: dict[str, Any] = {}

    async def answer(self, op: str, key: Any) -> Any:
        if op == "expect":
            port, self._sockets[key] = get_zmq_socket_on_host(
                self._receiver.context, zmq.PULL, host=self._receiver.host
            )
            return self._receiver.host, port
        inputs = await self._receiver._recv_mm_data(key, self._sockets.pop(key), Processor(), "")
        arrived = time.monotonic()
        self.rows[key] = inputs.rows
        return arrived


class ToSchedulerWriter(SglangWriter):
    backend = "zmq_to_scheduler"

    async def _announce(self, part: str, host: str, port: int) -> dict[str, Any]:
        state = self._encoder._acquire_encode_ref(part)
        await self._encoder.register_embedding_destinations(part, 1, [f"{host}:{port}"])
        await self._encoder._release_encode_ref(state)
        return {}


class ToSchedulerReceiver(SglangReceiver):
    """A scheduler of one rank, less everything but its turning loop."""

    backend = "zmq_to_scheduler"

    def _make_receiver(self, args: ServerArgs) -> MMReceiverHTTP:
        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        return MMReceiverHTTP(
            args,
            tp_rank=0,
            tp_group=SimpleNamespace(cpu_group=torch.distributed.group.WORLD),
            scheduler=SimpleNamespace(),
            encode_urls=ENCODER_URLS,
        )

    async def answer(self, op: str, key: Any) -> Any:
        if op == "expect":
            self._expect(key)
            return self._receiver.hostname, self._receiver.scheduler_embedding_port
        request, arrived = await asyncio.to_thread(self._turn)
        self.rows[key] = request.mm_inputs.rows
        return arrived

    def _expect(self, key: str) -> None:
        """What `process_waiting_requests` does with a new request, less its HTTP request."""
        receiver = self._receiver
        waiting = WaitingZmqRequest(
            rid=key,
            recv_req=SimpleNamespace(
                rid=key, num_items_assigned={Modality.IMAGE: [1]}, input_text="", input_ids=None
            ),
            mm_processor=Processor(),
            encoder_urls=ENCODER_URLS,
            model_type=receiver.model_type,
            host_name=receiver.hostname,
            receive_count=receiver.tp_size,
            embedding_port=receiver.scheduler_embedding_port,
            embedding_pool=receiver.embedding_pool,
            registration_runner=receiver.registration_runner,
        )
        receiver.waiting_by_rid[key] = waiting
        receiver.waiting_list.append(waiting)

    def _turn(self) -> tuple[Any, float]:
        """In a thread, as the scheduler's loop: until a request has its embedding."""
        while True:
            ready, aborted = self._receiver.process_waiting_requests([])
            if ready:
                return ready[0], time.monotonic()
            if aborted:
                raise RuntimeError(aborted[0][1])


class Processor:
    """Where SGLang's multimodal processor expands the prompt: neither side's matter here."""

    prefer_tokenized_input = False

    def get_validated_mm_data(self, prompt: Any, embeddings: Any, **grids: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[], rows=embeddings[Modality.IMAGE])


def _publish(backend: str, **role: bool) -> ServerArgs:
    args = ServerArgs(model_path=str(MODEL), device="cpu", encoder_transfer_backend=backend, **role)
    publish(args, role="encoder" if "encoder_only" in role else "tokenizer")
    return args
