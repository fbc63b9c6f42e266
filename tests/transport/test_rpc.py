# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`transport/rpc.py`: an answer, or an error that says who did not give one, in bounded time."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import ProtocolError, Reason, Refused
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE_CONTROL_REPLY,
    Close,
    Done,
    Ping,
    Refusal,
    dump,
)
from dynamo.sglang_mm_resume.transport.rpc import PeerUnreachable, ask, each_while, each_within

SHORT_S = 0.05
LONG_S = 10.0


class FakePeer:
    """A Dynamo client of one instance. Imitates answers, errors and silence, not the network."""

    def __init__(self, *answers: Any, error: Exception | None = None, silent: bool = False) -> None:
        self.asked: list[tuple[int, Any]] = []
        self._answers = answers
        self._error = error
        self._silent = silent

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.asked.append((instance_id, request))
        if self._error is not None:
            raise self._error
        return self._stream()

    def instance_ids(self) -> list[int]:
        return []

    async def _stream(self) -> AsyncIterator[Any]:
        if self._silent:
            await asyncio.Event().wait()
        for answer in self._answers:
            yield answer


async def test_an_answer_is_parsed() -> None:
    peer = FakePeer(dump(Done()))
    assert await ask(peer, 7, Ping(), ENCODE_CONTROL_REPLY, LONG_S) == Done()
    assert peer.asked == [(7, dump(Ping()))]


async def test_a_refusal_keeps_its_reason() -> None:
    peer = FakePeer(dump(Refusal(reason=Reason.OVERLOADED, message="later")))
    with pytest.raises(Refused, match="later") as refused:
        await ask(peer, 7, Ping(), ENCODE_CONTROL_REPLY, LONG_S)
    assert refused.value.reason is Reason.OVERLOADED


async def test_nonsense_is_the_peer_s_fault() -> None:
    with pytest.raises(ProtocolError):
        await ask(FakePeer({"op": "sing"}), 7, Ping(), ENCODE_CONTROL_REPLY, LONG_S)


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (FakePeer(error=Exception("Unavailable: gone")), "gone"),
        (FakePeer(), "without an answer"),
        (FakePeer(silent=True), "no answer in"),
    ],
    ids=["lost", "no-answer", "silent"],
)
async def test_a_peer_that_does_not_answer_is_named(peer: FakePeer, why: str) -> None:
    close = Close(transfer_id="transfer-a")
    with pytest.raises(PeerUnreachable, match=f"instance 7.*{why}"):
        await ask(peer, 7, close, ENCODE_CONTROL_REPLY, SHORT_S)


async def test_a_stream_may_take_long_in_all_but_not_per_item() -> None:
    async def slow() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.to_thread(threading.Event().wait, SHORT_S)
            yield number

    assert [number async for number in each_within(LONG_S, slow())] == [0, 1, 2]


async def test_a_stream_that_falls_silent_ends_in_an_error() -> None:
    async def falls_silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    seen = []
    with pytest.raises(PeerUnreachable, match="nothing was heard"):
        async for number in each_within(SHORT_S, falls_silent()):
            seen.append(number)
    assert seen == [1]


async def test_an_error_of_the_stream_s_own_is_not_taken_for_silence() -> None:
    """Dynamo's client raises builtin types, `TimeoutError` among them."""

    async def fails() -> AsyncIterator[int]:
        raise TimeoutError("the peer says: deadline exceeded")
        yield

    with pytest.raises(TimeoutError, match="deadline exceeded"):
        async for _ in each_within(LONG_S, fails()):
            pass


async def test_an_error_of_a_call_s_own_is_not_taken_for_silence() -> None:
    peer = FakePeer(error=TimeoutError("the peer says: deadline exceeded"))
    with pytest.raises(PeerUnreachable, match="instance 7: the peer says: deadline exceeded"):
        await ask(peer, 7, Ping(), ENCODE_CONTROL_REPLY, LONG_S)


class Stream:
    """Items that come when a test puts them in; `None` is the end."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | None] = asyncio.Queue()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> str:
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        return item


class Peer:
    """Answers probes, or does not; `asked` is set by every one."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def probe(self) -> None:
        self.asked.set()
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error


async def test_a_silent_peer_that_answers_probes_is_waited_for() -> None:
    stream, peer = Stream(), Peer()
    peer.may_answer.set()
    items = each_while(stream, SHORT_S, peer.probe)
    first = asyncio.ensure_future(anext(items))
    for _ in range(3):
        peer.asked.clear()
        await asyncio.wait_for(peer.asked.wait(), LONG_S)
    stream.items.put_nowait("a")
    stream.items.put_nowait(None)
    assert await asyncio.wait_for(first, LONG_S) == "a"
    assert [item async for item in items] == []


async def test_a_silent_peer_that_fails_its_probe_ends_the_wait() -> None:
    stream, peer = Stream(), Peer()
    peer.error = PeerUnreachable("it is dead")
    peer.may_answer.set()
    with pytest.raises(PeerUnreachable, match="it is dead"):
        await asyncio.wait_for(anext(each_while(stream, SHORT_S, peer.probe)), LONG_S)


async def test_a_peer_that_is_heard_during_its_probe_is_not_dead() -> None:
    stream, peer = Stream(), Peer()
    peer.error = PeerUnreachable("it is dead")
    items = each_while(stream, SHORT_S, peer.probe)
    first = asyncio.ensure_future(anext(items))
    await asyncio.wait_for(peer.asked.wait(), LONG_S)
    stream.items.put_nowait("a")
    assert await asyncio.wait_for(first, LONG_S) == "a"
    peer.may_answer.set()
    stream.items.put_nowait("b")
    assert await asyncio.wait_for(anext(items), LONG_S) == "b"
    await items.aclose()


async def test_a_reader_that_is_busy_elsewhere_asks_nobody() -> None:
    stream, peer = Stream(), Peer()
    stream.items.put_nowait("a")
    items = each_while(stream, SHORT_S, peer.probe)
    assert await anext(items) == "a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.asked.wait(), 4 * SHORT_S)
    await items.aclose()


async def test_a_time_out_of_the_stream_itself_is_passed_on() -> None:
    async def stream() -> AsyncIterator[str]:
        raise TimeoutError("its own")
        yield ""

    with pytest.raises(TimeoutError, match="its own"):
        await anext(each_while(stream(), LONG_S, Peer().probe))
