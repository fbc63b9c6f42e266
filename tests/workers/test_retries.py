# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the processor tries again on another worker, what it does not, and when it turns away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from dynamo.llm import HttpError
from dynamo.llm.exceptions import InvalidArgument

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import SHUTS_DOWN, Reason
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.core.messages import Done, Refusal, Sent, Sized, dump
from dynamo.sglang_mm_resume.workers.hand_off import Peers
from dynamo.sglang_mm_resume.workers.numbers import Numbers
from dynamo.sglang_mm_resume.workers.processor import MAX_PARTS, Processor
from tests.workers.test_processor_flow import (
    DEADLINE_S,
    PAD,
    SETTINGS,
    FakeContext,
    FakePeer,
    _answer,
    _control,
    _encode,
)

PREFILL, ENCODE = [1, 2], [11, 12]
MEDIA = {
    "token_ids": [1, PAD, 2],
    "multi_modal_data": {"image_url": [{"Url": "data:image/png;base64,AA"}]},
}

Answers = Callable[[dict[str, Any]], AsyncIterator[Any]]


class Faulty(FakePeer):
    """The first instance that is asked, and it alone, does something else."""

    def __init__(self, ids: list[int], answers: Answers, first: Answers) -> None:
        super().__init__(ids, answers)
        self.first = first

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.calls.append((instance_id, request))
        is_first = instance_id == self.calls[0][0]
        return (self.first if is_first else self.answers)(request)


async def _dies(request: dict[str, Any]) -> AsyncIterator[Any]:
    """What Dynamo's client raises for a peer that is gone."""
    raise Exception("Unavailable: TCP connection failed")
    yield


async def _dies_after_sizing(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield dump(Sized(total_tokens=4, grid=(1, 4, 4), content_hash="0" * 16))
    raise Exception("Disconnected: stream ended")


async def _hangs(request: dict[str, Any]) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


def refusing(reason: Reason) -> Answers:
    async def refuse(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield dump(Refusal(reason=reason, message="no"))

    return refuse


async def _breaks_off(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield {"index": 0, "token_ids": [6]}
    raise Exception("Unavailable: gone")


class Graph:
    """A processor between stand-ins."""

    def __init__(
        self,
        encode: FakePeer | None = None,
        prefill: FakePeer | None = None,
        control: FakePeer | None = None,
        settings: Settings = SETTINGS,
    ) -> None:
        self.encode = encode or FakePeer(ENCODE, _encode)
        self.encode_control = FakePeer(self.encode.ids, _control)
        self.prefill = prefill or FakePeer(PREFILL, _answer)
        self.control = control or FakePeer(self.prefill.ids, _control)
        peers = Peers(self.prefill, self.control, self.encode, self.encode_control)
        self.processor = Processor(settings, peers, {"image": PAD}, Numbers(512))

    async def ask(self, **fields: Any) -> list[dict[str, Any]]:
        async with asyncio.timeout(DEADLINE_S):
            request = {**MEDIA, **fields}
            return [chunk async for chunk in self.processor.generate(request, FakeContext())]

    async def finish(self) -> None:
        await asyncio.wait_for(self.processor.finish(), DEADLINE_S)

    @property
    def transfers(self) -> list[str]:
        """The transfer of each item that an encode worker was asked to encode."""
        return [request["transfer_id"] for _, request in self.encode.calls]

    def closed(self) -> list[tuple[int, str]]:
        return [
            (i, request["transfer_id"])
            for i, request in self.encode_control.calls
            if request["op"] == "close"
        ]

    def aborted(self) -> list[str]:
        return [r["transfer_id"] for _, r in self.control.calls if r["op"] == "abort"]

    def totals(self) -> dict[str, Any]:
        totals: dict[str, Any] = self.processor.status()["totals"]
        return totals


@pytest.mark.parametrize(
    "fault",
    [
        _dies,
        _dies_after_sizing,
        _hangs,
        refusing(Reason.OVERLOADED),
        refusing(Reason.FAILED),
        refusing(Reason.INTERNAL),
        refusing(Reason.DUPLICATE),
    ],
    ids=["dies", "dies-late", "hangs", "overloaded", "failed", "internal", "duplicate"],
)
async def test_an_item_goes_to_another_encode_worker_as_a_transfer_of_its_own(
    fault: Answers,
) -> None:
    graph = Graph(encode=Faulty(ENCODE, _encode, fault))
    if fault is _hangs:  # and answers no probe: that is how it is told from a busy one
        graph.encode_control.answers = _hangs
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    (first, _), (second, _) = graph.encode.calls
    assert {first, second} == set(ENCODE)
    lost, good = graph.transfers
    assert lost != good
    await graph.finish()
    assert (first, lost) in graph.closed()
    assert graph.aborted() == [lost]
    (forwarded,) = [request for _, request in graph.prefill.calls]
    assert [item["transfer_id"] for item in forwarded["mm_resume"]] == [good]
    assert graph.totals()["encode_retries"] == 1


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.TOO_LONG])
async def test_what_the_client_did_wrong_is_wrong_everywhere(reason: Reason) -> None:
    graph = Graph(encode=FakePeer(ENCODE, refusing(reason)))
    with pytest.raises(InvalidArgument):
        await graph.ask()
    assert len(graph.encode.calls) == 1


async def test_an_item_is_tried_twice_at_most() -> None:
    graph = Graph(encode=FakePeer([11, 12, 13], _dies))
    with pytest.raises(HttpError) as error:
        await graph.ask()
    assert error.value.code == 503
    assert len(graph.encode.calls) == 2
    await graph.finish()
    assert sorted(graph.aborted()) == sorted(graph.transfers)


async def test_a_dead_encode_worker_gets_no_further_items() -> None:
    graph = Graph(encode=FakePeer([11], _dies))
    graph.encode_control.answers = _dies
    for _ in range(3):
        with pytest.raises(HttpError):
            await graph.ask()
    assert len(graph.encode.calls) == 1, "it was known to be dead"
    graph.encode_control.answers = _control
    graph.encode.answers = _encode
    graph.encode.ids[:] = [12]
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    await graph.finish()


class Draining(FakePeer):
    """All instances but `well` shut down: they refuse, and stay listed."""

    def __init__(self, ids: list[int], answers: Answers, refuse: Answers, well: int) -> None:
        super().__init__(ids, answers)
        self.refuse = refuse
        self.well = well

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.calls.append((instance_id, request))
        return (self.answers if instance_id == self.well else self.refuse)(request)


async def _shuts_down(request: dict[str, Any]) -> AsyncIterator[Any]:
    if request.get("op") not in ("reserve", "encode"):
        async for answer in _control(request):
            yield answer
        return
    yield dump(Refusal(reason=Reason.DRAINING, message=SHUTS_DOWN))


async def _engine_shuts_down(request: dict[str, Any]) -> AsyncIterator[Any]:
    """As it arrives over Dynamo's request plane."""
    raise ValueError(f'Unavailable: {{"message": "{SHUTS_DOWN}", "code": 503}}')
    yield


TEXT = {"token_ids": [1, 2], "multi_modal_data": None}


@pytest.mark.parametrize("role", ["encode", "reserve", "generate"])
async def test_workers_that_shut_down_cost_no_attempt_and_are_asked_once(role: str) -> None:
    """A rolling update: two of three drain for as long as their streams last. They empty, and so
    have the least outstanding work.
    """
    ids = [21, 22, 23]
    match role:
        case "encode":
            peer = Draining(ids, _encode, _shuts_down, well=23)
            graph = Graph(encode=peer)
        case "reserve":
            peer = Draining(ids, _control, _shuts_down, well=23)
            graph = Graph(prefill=FakePeer(ids, _answer), control=peer)
        case _:
            peer = Draining(ids, _answer, _engine_shuts_down, well=23)
            graph = Graph(prefill=peer)
    for _ in range(12):
        answer = await graph.ask(**(TEXT if role == "generate" else {}))
        assert answer[-1]["finish_reason"] == "stop"
    refused = [r for i, r in peer.calls if i != 23 and r.get("op") in (None, role)]
    assert len(refused) == 2, "each is asked once"
    totals = graph.totals()
    assert (totals["encode_retries"], totals["prefill_retries"]) == (0, 0)
    await graph.finish()


async def test_a_request_for_which_all_workers_shut_down_may_come_again() -> None:
    graph = Graph(encode=Draining([11, 12], _encode, _shuts_down, well=0))
    for _ in range(2):
        with pytest.raises(HttpError) as error:
            await graph.ask()
        assert error.value.code == 503
    assert len(graph.encode.calls) == 2
    await graph.finish()


@pytest.mark.parametrize("op", ["reserve", "resume"])
async def test_a_request_goes_to_another_prefill_worker(op: str) -> None:
    async def small(request: dict[str, Any]) -> AsyncIterator[Any]:
        async for answer in _control(request):
            yield answer

    async def refuses(request: dict[str, Any]) -> AsyncIterator[Any]:
        if request["op"] != op:
            async for answer in _control(request):
                yield answer
            return
        yield dump(Refusal(reason=Reason.OVERLOADED, message="it is full"))

    async def long(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield dump(Sized(total_tokens=20, grid=(1, 4, 20), content_hash="0" * 16))
        yield dump(Sent(generation=0, sent_tokens=16, num_bytes=8))
        await asyncio.Event().wait()

    encode = FakePeer(ENCODE, long if op == "resume" else _encode)
    graph = Graph(encode=encode, control=Faulty(PREFILL, small, refuses))
    if op == "resume":  # the other one cannot do it either, here: but it was asked
        with pytest.raises(RuntimeError):
            await graph.ask()
    else:
        assert (await graph.ask())[-1]["finish_reason"] == "stop"
    reserved = [i for i, request in graph.control.calls if request["op"] == "reserve"]
    assert sorted(reserved) == PREFILL
    assert graph.totals()["prefill_retries"] == 1
    await graph.finish()


async def test_text_goes_to_another_prefill_worker_before_its_first_token() -> None:
    graph = Graph(prefill=Faulty(PREFILL, _answer, _dies))
    answer = await graph.ask(token_ids=[1, 2], multi_modal_data=None)
    assert answer[-1]["finish_reason"] == "stop"
    assert sorted(i for i, _ in graph.prefill.calls) == PREFILL


async def test_an_answer_that_has_begun_goes_on_elsewhere() -> None:
    """As a request of its own, with transfers of their own; what was given up is given back."""
    graph = Graph(prefill=Faulty(PREFILL, _answer, first=_breaks_off))
    stop = {"max_tokens": 8, "min_tokens": 1, "ignore_eos": True}
    chunks = await graph.ask(stop_conditions=stop)
    assert [chunk["token_ids"] for chunk in chunks] == [[6], [5]]
    (first, _), (second, rest) = graph.prefill.calls
    assert sorted((first, second)) == PREFILL
    assert rest["token_ids"] == [*MEDIA["token_ids"], 6]
    assert rest["stop_conditions"] == {"max_tokens": 7, "min_tokens": 0, "ignore_eos": True}
    assert len(set(graph.transfers)) == 2
    assert graph.processor.totals.answers_continued == 1
    assert graph.processor.totals.prefill_retries == 0
    await graph.finish()
    assert graph.aborted() == graph.transfers[:1]


async def test_an_answer_goes_on_a_few_times_only() -> None:
    """What brings one engine down after the other must not have them all."""
    graph = Graph(prefill=FakePeer(PREFILL, _breaks_off))
    with pytest.raises(HttpError) as error:
        await graph.ask()
    assert error.value.code == 503
    assert len(graph.prefill.calls) == MAX_PARTS
    await graph.finish()
    assert graph.aborted() == graph.transfers


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling_options": {"n": 2}},
        {"sampling_options": {"guided_decoding": {"regex": "a"}}},
        {"sampling_options": {"frequency_penalty": 0.5}},
        {"token_ids": [1, 2], "multi_modal_data": None, "media_token": True},
    ],
    ids=["n", "grammar", "penalty", "placeholder"],
)
async def test_an_answer_that_nobody_else_could_continue_ends(fields: dict[str, Any]) -> None:
    async def breaks_off(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield {"index": 0, "token_ids": [PAD if request.get("media_token") else 6]}
        raise Exception("Unavailable: gone")

    graph = Graph(prefill=FakePeer(PREFILL, breaks_off))
    with pytest.raises(HttpError) as error:
        await graph.ask(**fields)
    assert error.value.code == 503
    assert len(graph.prefill.calls) == 1


# --- Workers of the release before ---

BEFORE = PROTOCOL_VERSION - 1


def of_release_before(answers: Answers) -> Answers:
    """A worker that refuses what is not of its version, and says so in that."""

    async def answer(request: dict[str, Any]) -> AsyncIterator[Any]:
        if request["v"] != BEFORE:
            refusal = Refusal(reason=Reason.VERSION, message=f"this worker speaks {BEFORE}")
            yield dump(refusal, BEFORE)
            return
        async for payload in answers(request):
            yield {**payload, "v": BEFORE}

    return answer


@pytest.mark.parametrize("role", ["encode", "prefill"])
async def test_workers_of_the_release_before_are_spoken_to_in_their_version(role: str) -> None:
    if role == "encode":
        graph = Graph(encode=FakePeer(ENCODE, of_release_before(_encode)))
        asked = graph.encode
    else:
        graph = Graph(control=FakePeer(PREFILL, of_release_before(_control)))
        asked = graph.control
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    assert [request["v"] for _, request in asked.calls] == [PROTOCOL_VERSION, BEFORE]
    assert graph.processor.totals.prefill_retries == 0
    assert graph.processor.status()["totals"]["encode_retries"] == 0
    await graph.finish()


async def test_who_refuses_its_own_version_is_asked_no_more() -> None:
    async def refuse(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield dump(Refusal(reason=Reason.VERSION, message="no"), BEFORE)

    graph = Graph(encode=FakePeer(ENCODE, refuse))
    with pytest.raises(HttpError) as error:
        await graph.ask()
    assert error.value.code == 503
    assert len(graph.encode.calls) == 2 * len(ENCODE)
    await graph.finish()


async def test_an_encode_worker_that_does_not_fit_costs_no_request() -> None:
    """Pools of other blocks, say: another one may fit."""
    graph = Graph(encode=Faulty(ENCODE, _encode, first=refusing(Reason.LAYOUT)))
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    assert sorted(i for i, _ in graph.encode.calls) == ENCODE
    await graph.finish()


# --- Without an encode worker ---


async def test_without_an_encode_worker_pictures_fail_and_text_does_not() -> None:
    graph = Graph(encode=FakePeer([], _encode))
    with pytest.raises(HttpError) as error:
        await graph.ask()
    assert error.value.code == 503
    assert graph.control.calls == [], "no block was asked for"
    assert await graph.ask(token_ids=[1, 2], multi_modal_data=None)


@pytest.mark.parametrize("ids", [[], [11], [11, 12]], ids=["none", "one-dies", "both-die"])
async def test_with_local_encoding_the_prefill_worker_gets_the_media(ids: list[int]) -> None:
    settings = SETTINGS.model_copy(update={"encode_fallback": "local"})
    graph = Graph(encode=FakePeer(ids, _dies), settings=settings)
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    (forwarded,) = [request for _, request in graph.prefill.calls]
    assert "mm_resume" not in forwarded
    assert forwarded["mm_resume_local"] == [
        {"modality": "image", "url": "data:image/png;base64,AA"}
    ]
    assert graph.totals()["encode_fallbacks"] == 1
    await graph.finish()
    assert sorted(graph.aborted()) == sorted(graph.transfers)


async def test_an_overloaded_encode_worker_is_no_dead_one() -> None:
    settings = SETTINGS.model_copy(update={"encode_fallback": "local"})
    graph = Graph(encode=FakePeer([11], refusing(Reason.OVERLOADED)), settings=settings)
    with pytest.raises(HttpError):
        await graph.ask()
    assert graph.totals()["encode_fallbacks"] == 0


async def _blind(request: dict[str, Any]) -> AsyncIterator[Any]:
    """A prefill worker without a vision tower, as its refusal arrives."""
    if "mm_resume_local" in request:
        raise ValueError('UnsupportedMedia: {"message": "no tower", "code": 415}')
    yield {"index": 0, "token_ids": [5], "finish_reason": "stop"}


async def test_small_media_go_to_the_engine_and_to_encode_workers_if_it_is_blind() -> None:
    settings = SETTINGS.model_copy(update={"encode_min_items": 2})
    graph = Graph(settings=settings)
    await graph.ask()
    assert "mm_resume_local" in graph.prefill.calls[0][1]
    assert graph.control.calls == graph.encode.calls == []
    assert graph.totals()["items_local"] == 1
    graph = Graph(prefill=FakePeer([1], _blind), settings=settings)
    for _ in range(2):
        await graph.ask()
    sent = ["mm_resume_local" in request for _, request in graph.prefill.calls]
    assert sent == [True, False, False]
    assert graph.totals()["items_local"] == 0


async def test_small_media_are_answered_while_encode_workers_have_their_fill() -> None:
    settings = SETTINGS.model_copy(update={"encode_min_items": 2, "max_encodes": 1})
    graph = Graph(encode=FakePeer([11], _hangs), settings=settings)
    two = {"image_url": MEDIA["multi_modal_data"]["image_url"] * 2}
    large = asyncio.ensure_future(graph.ask(token_ids=[1, PAD, PAD, 2], multi_modal_data=two))
    while not graph.encode.calls:
        await asyncio.sleep(0)
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    await graph.finish()


async def test_blind_engines_and_no_encode_worker_are_said_to_the_client() -> None:
    settings = SETTINGS.model_copy(update={"encode_fallback": "local"})
    peers = {"encode": FakePeer([], _encode), "prefill": FakePeer([1], _blind)}
    with pytest.raises(HttpError, match="no vision tower") as error:
        await Graph(**peers, settings=settings).ask()
    assert error.value.code == 503


# --- Turned away ---


async def test_requests_beyond_the_limit_are_turned_away_at_once() -> None:
    release = asyncio.Event()

    async def slow(request: dict[str, Any]) -> AsyncIterator[Any]:
        await release.wait()
        yield {"index": 0, "token_ids": [5], "finish_reason": "stop"}

    settings = SETTINGS.model_copy(update={"max_requests": 2})
    graph = Graph(prefill=FakePeer(PREFILL, slow), settings=settings)
    text = {"token_ids": [1, 2], "multi_modal_data": None}
    accepted = [asyncio.ensure_future(graph.ask(**text)) for _ in range(2)]
    while len(graph.prefill.calls) < 2:
        await asyncio.sleep(0)
    with pytest.raises(HttpError) as error:
        await graph.ask(**text)
    assert error.value.code == 503
    release.set()
    assert all(await asyncio.gather(*accepted))
    assert await graph.ask(**text), "there is room again"


async def test_pictures_are_turned_away_at_once_while_encode_workers_have_their_fill() -> None:
    release = asyncio.Event()

    async def slow(request: dict[str, Any]) -> AsyncIterator[Any]:
        await release.wait()
        async for event in _encode(request):
            yield event

    settings = SETTINGS.model_copy(update={"max_encodes": 1})
    graph = Graph(encode=FakePeer([11], slow), settings=settings)
    graph.encode_control.answers = _pong
    accepted = asyncio.ensure_future(graph.ask())
    while not graph.encode.calls:
        await asyncio.sleep(0)
    with pytest.raises(HttpError) as error:
        await graph.ask()
    assert error.value.code == 503
    assert await graph.ask(token_ids=[1, 2], multi_modal_data=None), "text needs no room there"
    release.set()
    assert await accepted


async def test_items_of_an_accepted_request_wait_for_their_turn() -> None:
    at_once = most = 0

    async def counting(request: dict[str, Any]) -> AsyncIterator[Any]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        async for event in _encode(request):
            yield event
        at_once -= 1

    settings = SETTINGS.model_copy(update={"max_encodes": 2})
    graph = Graph(encode=FakePeer([11], counting), settings=settings)
    url = {"Url": "data:image/png;base64,AA"}
    await graph.ask(token_ids=[PAD] * 9, multi_modal_data={"image_url": [url] * 9})
    assert len(graph.encode.calls) == 9
    assert most == 2


async def _pong(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield dump(Done())


async def test_the_second_attempt_begins_with_the_prompt_as_it_was() -> None:
    """What the first one has added would count twice, and refuse a picture that fits."""
    graph = Graph(encode=Faulty(ENCODE, _encode, _dies_after_sizing))
    await graph.ask()
    lengths = [request["prompt_tokens"] for _, request in graph.encode.calls]
    assert lengths == [len(MEDIA["token_ids"])] * 2


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_TRANSFER, Reason.FAILED])
async def test_a_transfer_that_the_prefill_worker_gave_up_is_moved_once_more(
    reason: Reason,
) -> None:
    """It takes an encode worker that hangs for dead before the processor does."""

    async def gives_up(request: dict[str, Any]) -> AsyncIterator[Any]:
        if request["op"] == "resume":
            yield dump(Refusal(reason=reason, message="given up"))
            return
        async for answer in _control(request):
            yield answer

    async def long(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield dump(Sized(total_tokens=20, grid=(1, 4, 20), content_hash="0" * 16))
        await asyncio.Event().wait()

    graph = Graph(encode=Faulty(ENCODE, _encode, long), control=FakePeer(PREFILL, gives_up))
    assert (await graph.ask())[-1]["finish_reason"] == "stop"
    assert graph.totals()["encode_retries"] == 1
    assert graph.totals()["prefill_retries"] == 0
