# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A prefill engine beside decode workers: what would leave one of the two waiting is an error."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dynamo.llm.exceptions import InvalidArgument
from dynamo.sglang.request_handlers import PrefillWorkerHandler

from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.core.messages import Received
from dynamo.sglang_mm_resume.workers.lifecycle import Admission
from dynamo.sglang_mm_resume.workers.prefill import KvSourceHandler
from dynamo.sglang_mm_resume.workers.request import ROOMS_KEY
from dynamo.sglang_mm_resume.workers.sglang_engine import KvSource

TRANSFER = "transfer-a"
DEADLINE_S = 5.0


async def _consume(monkeypatch: pytest.MonkeyPatch, meta_info: Any) -> Any:
    async def upstream(self: Any, *args: Any) -> Any:
        return meta_info

    monkeypatch.setattr(PrefillWorkerHandler, "_consume_results", upstream)
    return await object.__new__(KvSource)._consume_results("stream", "rid", "context")


@pytest.mark.parametrize("meta_info", [None, {"finish_reason": {"type": "length"}}])
async def test_what_ended_well_or_was_cancelled_passes(
    monkeypatch: pytest.MonkeyPatch, meta_info: Any
) -> None:
    assert await _consume(monkeypatch, meta_info) == meta_info


@pytest.mark.parametrize("status_code", [None, 500, 503])
async def test_an_abort_is_a_failed_transfer(
    monkeypatch: pytest.MonkeyPatch, status_code: int | None
) -> None:
    abort = {"type": "abort", "status_code": status_code, "message": "lost the peer"}
    with pytest.raises(TransferFailed, match="lost the peer"):
        await _consume(monkeypatch, {"finish_reason": abort})


async def test_an_abort_for_the_clients_fault_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    abort = {"type": "abort", "status_code": 400, "message": "too long"}
    with pytest.raises(InvalidArgument, match="too long"):
        await _consume(monkeypatch, {"finish_reason": abort})


# --- Several choices ---


class _Upstream:
    """In place of Dynamo's own `generate`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **special: Any) -> None:
        self.requests: list[dict[str, Any]] = []
        self.special = special
        upstream = self

        async def generate(
            self: Any, request: dict[str, Any], context: Any
        ) -> AsyncIterator[dict[str, Any]]:
            upstream.requests.append(request)
            room = request["bootstrap_info"]["bootstrap_room"]
            yield {"disaggregated_params": {"bootstrap_room": room}}
            outcome = upstream.special.get(f"room_{room}", {"engine_data": room})
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is not None:
                yield outcome

        monkeypatch.setattr(PrefillWorkerHandler, "generate", generate)

    async def ask(self, further: list[int]) -> list[dict[str, Any]]:
        request = {
            "sampling_options": {"n": 1 + len(further), "temperature": 0.5},
            "bootstrap_info": {"bootstrap_room": 1},
            ROOMS_KEY: further,
        }
        chunks = object.__new__(KvSource).generate(request, "context")
        return [chunk async for chunk in chunks]


async def test_every_room_gets_its_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = _Upstream(monkeypatch)
    first, last = await upstream.ask([2, 3])
    assert first == {"disaggregated_params": {"bootstrap_room": 1}}
    assert last == {"engine_data": 1}
    rooms = [request["bootstrap_info"]["bootstrap_room"] for request in upstream.requests]
    assert rooms == [1, 2, 3]
    for request in upstream.requests:
        assert request["sampling_options"] == {"n": 1, "temperature": 0.5}
        assert ROOMS_KEY not in request


async def test_one_choice_is_passed_on_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = _Upstream(monkeypatch)
    assert (await upstream.ask([]))[-1] == {"engine_data": 1}
    (request,) = upstream.requests
    assert ROOMS_KEY not in request


async def test_a_room_that_nobody_fetched_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(await _Upstream(monkeypatch, room_3=None).ask([2, 3])) == 1


async def test_an_error_in_one_room_is_the_request_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransferFailed, match="lost the peer"):
        await _Upstream(monkeypatch, room_2=TransferFailed("lost the peer")).ask([2, 3])


# --- The handler ---


async def test_a_processor_that_knows_no_decode_worker_is_told() -> None:
    handler = object.__new__(KvSourceHandler)
    with pytest.raises(RuntimeError, match="--decode-workers"):
        await anext(handler.generate({"token_ids": [1]}, context=None))


class EngineAlone:
    """An engine whose KV nobody fetches: a request lasts until it is aborted."""

    def __init__(self) -> None:
        self.tokenizer_manager = self
        self.rid_to_state: dict[str, Any] = {}
        self.aborted: list[str] = []
        self._abort = asyncio.Event()

    def abort_request(self, rid: str, abort_all: bool) -> None:
        self.aborted.append(rid)
        self._abort.set()

    async def async_generate(self, **request: Any) -> AsyncIterator[Any]:
        return self._results(request["rid"])

    async def _results(self, rid: str) -> AsyncIterator[Any]:
        dispatched = SimpleNamespace(api_server_dispatch_finish_time=1.0)
        self.rid_to_state[rid] = SimpleNamespace(time_stats=dispatched)
        await self._abort.wait()
        del self.rid_to_state[rid]
        yield {"meta_info": {"id": rid, "finish_reason": {"type": "abort", "message": "told to"}}}


class Embeddings:
    """What is used of `EmbeddingInput` and `Assembler`: one embedding that is here."""

    def __init__(self) -> None:
        self.offered: list[str] = []
        self.taken: list[str] = []

    async def take(self, transfer_id: str) -> torch.Tensor:
        self.taken.append(transfer_id)
        return torch.zeros(4, 2)

    def drop(self, transfer_id: str) -> None:
        self.taken.remove(transfer_id)

    def offer(self, offers: list[Any]) -> list[str]:
        self.offered = [f"mm-resume:{i}" for i, _ in enumerate(offers)]
        return self.offered

    def withdraw(self, references: list[str]) -> None:
        self.offered = []


def _handler(engine: EngineAlone, embeddings: Embeddings) -> KvSourceHandler:
    handler = object.__new__(KvSourceHandler)
    server_args = SimpleNamespace(pp_size=1, enable_dp_attention=False)
    vars(handler).update(
        {
            "engine": engine,
            "config": SimpleNamespace(server_args=server_args),
            "shutdown_event": None,
            "bootstrap_host": "10.0.0.1",
            "bootstrap_port": 7,
            "enable_trace": False,
            "_abort_tasks": set(),
            "_consume_tasks": set(),
            "_supports_ordered_cancellation": True,
            "_get_guided_decoding_params": lambda options: {},
            "_get_input_param": lambda request: {"input_ids": request["token_ids"]},
            "_resolve_lora": lambda request: None,
            "_priority_kwargs": lambda priority: {},
            "_assembler": embeddings,
            "_embeddings": embeddings,
            "_admission": Admission(),
            "_refusals": Counter(),
            "_local": 0,
            "_max_local": 1,
        }
    )
    return handler


async def test_a_prefill_that_is_stopped_before_its_end_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when a short answer ends first: the processor then stops the prefill's context."""
    upstream = "dynamo.sglang.request_handlers."
    prefill = f"{upstream}llm.prefill_handler.require_reasoning_kwargs"
    monkeypatch.setattr(prefill, lambda *args, **kwargs: {})
    monkeypatch.setattr(f"{upstream}cancellation.resolved_server_args", lambda args: args)
    engine, embeddings = EngineAlone(), Embeddings()
    handler, stopped = _handler(engine, embeddings), asyncio.Event()
    context = SimpleNamespace(
        id=lambda: "request",
        trace_id=None,
        async_killed_or_stopped=lambda: asyncio.ensure_future(stopped.wait()),
    )
    received = Received(
        transfer_id=TRANSFER,
        modality="image",
        total_tokens=4,
        grid=(1, 4, 4),
        content_hash="0" * 16,
    )
    request = {
        "token_ids": [1, 2],
        "bootstrap_info": {"bootstrap_room": 8},
        "mm_resume": [received.model_dump()],
    }
    chunks = handler.generate(request, context)
    assert (await anext(chunks))["disaggregated_params"]["bootstrap_room"] == 8
    assert embeddings.taken == [TRANSFER] and embeddings.offered
    stopped.set()
    async with asyncio.timeout(DEADLINE_S):
        assert [chunk async for chunk in chunks] == []
    assert len(engine.aborted) == 1
    assert not embeddings.taken
    assert not embeddings.offered
    assert not handler._admission.accepted
