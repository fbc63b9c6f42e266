# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/disagg.py` against stand-ins: whatever ends one of the two workers ends the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import (
    SHUTS_DOWN,
    ProtocolError,
    Reason,
    Refused,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.messages import Done, dump
from dynamo.sglang_mm_resume.workers.balance import NoneAlive
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.disagg import PrefillDecode
from dynamo.sglang_mm_resume.workers.request import ROOMS_KEY

SETTINGS = Settings(heartbeat_interval_s=0.02, heartbeat_max_failures=2)
DEADLINE_S = 3.0
PREFILL, DECODE = 1, 21
KV = {"bootstrap_host": "10.0.0.1", "bootstrap_port": 7, "bootstrap_room": 8}
LAST: dict[str, Any] = {"index": 0, "token_ids": [6], "finish_reason": "stop"}


class FakeContext:
    """What is used of Dynamo's: a context that can stop, and ones that do not stop with it."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.children: dict[str, FakeContext] = {}

    def id(self) -> str:
        return "request"

    def is_stopped(self) -> bool:
        return self.stopped.is_set()

    def stop_generating(self) -> None:
        self.stopped.set()

    def async_killed_or_stopped(self) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.stopped.wait())

    def detached(self, name: str) -> FakeContext:
        role = name.removeprefix("request-").rpartition("-")[0]
        child = self.children[role] = FakeContext()
        return child


Answers = Callable[[dict[str, Any], Any], AsyncIterator[Any]]


class FakePeer:
    """An endpoint of one instance: calls are noted, and answered by `answers`."""

    def __init__(self, instance_id: int, answers: Answers) -> None:
        self._instance_id = instance_id
        self._answers = answers
        self.calls: list[dict[str, Any]] = []

    def instance_ids(self) -> list[int]:
        return [self._instance_id]

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        assert instance_id == self._instance_id
        self.calls.append(request)
        return self._answers(request, context)


async def _alive(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    yield dump(Done())


async def _silent(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield {}


async def _prefills(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    yield {"token_ids": [], "disaggregated_params": KV}
    yield {"token_ids": [], "engine_data": {"kv_cache_hit": {}}}


async def _decodes(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    yield {"index": 0, "token_ids": [5]}
    yield LAST


async def _until_stopped(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
    """Nothing more until its context stops, and then a clean end, as Dynamo's streams have it."""
    if "bootstrap_host" not in request["bootstrap_info"]:
        yield {"token_ids": [], "disaggregated_params": KV}
    await context.stopped.wait()


class Graph:
    """One worker of each role, and the context of one request."""

    def __init__(
        self,
        prefill: Answers = _prefills,
        decode: Answers = _decodes,
        prefill_control: Answers = _alive,
        decode_control: Answers = _alive,
    ) -> None:
        self.prefill = FakePeer(PREFILL, prefill)
        self.decode = FakePeer(DECODE, decode)
        self.context = FakeContext()
        self.together = PrefillDecode(
            SETTINGS,
            Workers("prefill", self.prefill, FakePeer(PREFILL, prefill_control), SETTINGS),
            Workers("decode", self.decode, FakePeer(DECODE, decode_control), SETTINGS),
        )

    async def ask(self, **fields: Any) -> list[dict[str, Any]]:
        chunks = self.together.chunks({"token_ids": [1], **fields}, PREFILL, self.context)
        async with asyncio.timeout(DEADLINE_S):
            return [chunk async for chunk in chunks]

    def assert_both_are_over(self) -> None:
        children = self.context.children
        assert {name: child.is_stopped() for name, child in children.items()} == {
            "prefill": True,
            **{f"decode-{i}": True for i in range(len(self.decode.calls))},
        }


async def test_the_decode_worker_answers_with_the_kv_that_the_prefill_worker_names() -> None:
    graph = Graph()
    assert await graph.ask() == [{"index": 0, "token_ids": [5]}, LAST]
    (prefill,), (decode,) = graph.prefill.calls, graph.decode.calls
    assert 0 < prefill["bootstrap_info"]["bootstrap_room"] < 2**63
    assert decode["bootstrap_info"] == KV
    assert prefill["token_ids"] == decode["token_ids"] == [1]
    graph.assert_both_are_over()


async def test_a_short_answer_is_not_held_up_by_its_prefill() -> None:
    """The prefill ends with its context, and the prefill worker drops what the request had."""
    graph = Graph(prefill=_until_stopped)
    assert (await graph.ask())[-1] == LAST
    graph.assert_both_are_over()


async def test_embeddings_may_be_awaited_for_long_before_the_kv_is_named() -> None:
    async def late(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        await probed_often.wait()
        async for chunk in _prefills(request, context):
            yield chunk

    async def counting(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        pings.append(request["op"])
        if len(pings) >= 5:
            probed_often.set()
        yield dump(Done())

    pings: list[str] = []
    probed_often = asyncio.Event()
    assert (await Graph(prefill=late, prefill_control=counting).ask())[-1] == LAST
    assert set(pings) == {"ping"}


async def test_rooms_differ() -> None:
    graph = Graph()
    await graph.ask()
    await graph.ask()
    first, second = (call["bootstrap_info"]["bootstrap_room"] for call in graph.prefill.calls)
    assert first != second


async def test_a_prefill_that_fails_ends_the_decode() -> None:
    async def fails(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        yield {"token_ids": [], "disaggregated_params": KV}
        raise ValueError("Unavailable: Stream ended before generation completed")

    graph = Graph(prefill=fails, decode=_until_stopped)
    with pytest.raises(ValueError, match="Stream ended"):
        await graph.ask()
    graph.assert_both_are_over()


async def test_a_prefill_that_ends_without_a_result_ends_the_decode() -> None:
    async def gives_up(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        yield {"token_ids": [], "disaggregated_params": KV}

    graph = Graph(prefill=gives_up, decode=_until_stopped)
    with pytest.raises(TransferFailed, match="gave up"):
        await graph.ask()
    graph.assert_both_are_over()


async def test_a_decode_that_fails_ends_the_prefill() -> None:
    async def fails(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        yield {"index": 0, "token_ids": [5]}
        raise ValueError("Unavailable: Stream ended before generation completed")

    graph = Graph(prefill=_until_stopped, decode=fails)
    with pytest.raises(ValueError, match="Stream ended"):
        await graph.ask()
    graph.assert_both_are_over()


async def test_a_decode_worker_that_shuts_down_gets_no_more_requests() -> None:
    """Nothing was tried: the processor asks again, and the prefill worker is not to blame."""

    async def shuts_down(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        raise ValueError(f'Unavailable: {{"message": "{SHUTS_DOWN}", "code": 503}}')
        yield {}

    graph = Graph(prefill=_until_stopped, decode=shuts_down)
    with pytest.raises(Refused, match=f"decode worker {DECODE} shuts down") as refused:
        await graph.ask()
    assert refused.value.reason is Reason.DRAINING
    with pytest.raises(NoneAlive):
        await graph.ask()
    assert len(graph.decode.calls) == 1
    await graph.together.close()


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_that_hangs_is_an_error_and_ends_the_other(role: str) -> None:
    async def hangs(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        if "bootstrap_host" not in request["bootstrap_info"]:
            yield {"token_ids": [], "disaggregated_params": KV}
        await asyncio.Event().wait()

    other = "decode" if role == "prefill" else "prefill"
    graph = Graph(**{role: hangs, f"{role}_control": _silent, other: _until_stopped})
    with pytest.raises(TransferFailed, match=f"{role} worker .* is dead"):
        await graph.ask()
    graph.assert_both_are_over()


async def test_a_client_that_hangs_up_ends_both() -> None:
    graph = Graph(prefill=_until_stopped, decode=_until_stopped)
    asking = asyncio.ensure_future(graph.ask())
    while not graph.decode.calls:
        await asyncio.sleep(0)
    graph.context.stop_generating()
    with pytest.raises(TransferFailed):  # nobody sees it: the request is over
        await asking
    graph.assert_both_are_over()


async def test_an_answer_that_nobody_reads_any_more_ends_both() -> None:
    async def endless(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        while True:
            yield {"index": 0, "token_ids": [5]}

    graph = Graph(decode=endless)
    chunks = graph.together.chunks({"token_ids": [1]}, PREFILL, graph.context)
    await anext(chunks)
    await chunks.aclose()
    graph.assert_both_are_over()


async def test_a_prefill_worker_that_answers_itself_is_named() -> None:
    graph = Graph(prefill=_decodes)
    with pytest.raises(ProtocolError, match="--disaggregation-mode prefill"):
        await graph.ask()
    assert graph.decode.calls == []


# --- Several choices ---

THREE = {"sampling_options": {"n": 3, "temperature": 1.0}}


async def test_each_choice_has_a_kv_of_its_own() -> None:
    graph = Graph()
    chunks = await graph.ask(**THREE)
    for index in range(3):
        mine = [chunk for chunk in chunks if chunk["index"] == index]
        assert mine == [{"index": index, "token_ids": [5]}, {**LAST, "index": index}]
    (prefill,) = graph.prefill.calls
    assert [call["sampling_options"] for call in graph.decode.calls] == [
        {"n": 1, "temperature": 1.0}
    ] * 3
    rooms = [call["bootstrap_info"]["bootstrap_room"] for call in graph.decode.calls]
    assert rooms == [KV["bootstrap_room"], *prefill[ROOMS_KEY]]
    assert len(set(rooms)) == 3
    assert {call["bootstrap_info"]["bootstrap_port"] for call in graph.decode.calls} == {7}
    graph.assert_both_are_over()


async def test_one_choice_that_fails_ends_all() -> None:
    async def second_fails(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        if request["bootstrap_info"] == KV:
            await context.stopped.wait()
            return
        yield {"index": 0, "token_ids": [5]}
        raise ValueError("Unavailable: Stream ended before generation completed")

    graph = Graph(prefill=_until_stopped, decode=second_fails)
    with pytest.raises(ValueError, match="Stream ended"):
        await graph.ask(**THREE)
    graph.assert_both_are_over()


@pytest.mark.parametrize("options", [{}, {"sampling_options": {"n": None}}])
async def test_one_choice_needs_one_room(options: dict[str, Any]) -> None:
    graph = Graph()
    await graph.ask(**options)
    (prefill,) = graph.prefill.calls
    assert (prefill[ROOMS_KEY], len(graph.decode.calls)) == ([], 1)
