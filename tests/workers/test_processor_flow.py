# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/processor.py` against stand-ins, for what a real graph cannot be made to do.

The stand-ins answer the protocol's messages from a script. They move no bytes.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dynamo.llm import HttpError
from dynamo.llm.exceptions import InvalidArgument

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.messages import (
    Done,
    Grant,
    Granted,
    ReceiverName,
    Sent,
    Sized,
    dump,
)
from dynamo.sglang_mm_resume.workers.hand_off import Peers
from dynamo.sglang_mm_resume.workers.numbers import Numbers
from dynamo.sglang_mm_resume.workers.processor import Processor

PAD = 9
SETTINGS = Settings(bootstrap_timeout_s=5.0, heartbeat_interval_s=0.02, heartbeat_max_failures=2)
DEADLINE_S = 5.0


class FakeContext:
    def id(self) -> str:
        return "request"

    def is_stopped(self) -> bool:
        return False

    def async_killed_or_stopped(self) -> "asyncio.Future[bool]":
        return asyncio.get_running_loop().create_future()


class FakePeer:
    """One endpoint of some instances: every call is noted and answered by `answers`."""

    def __init__(self, ids: list[int], answers: Any) -> None:
        self.ids = ids
        self.answers = answers
        self.calls: list[tuple[int, dict[str, Any]]] = []

    def instance_ids(self) -> list[int]:
        return self.ids

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> AsyncIterator[Any]:
        self.calls.append((instance_id, request))
        return self.answers(request)


async def _control(request: dict[str, Any]) -> AsyncIterator[Any]:
    """A prefill worker that grants four blocks, and takes everything else."""
    if request["op"] != "reserve":
        yield dump(Done())
        return
    grant = Grant(
        transfer_id=request["transfer_id"],
        generation=0,
        first_token=0,
        blocks=(0, 1, 2, 3),
        block_size=4,
        chunk_blocks=4,
        valid_s=5.0,
    )
    receiver = ReceiverName(instance_id=1, agent="agent")
    yield dump(Granted(grant=grant, receiver=receiver, max_prompt_tokens=100))


async def _encode(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield dump(Sized(total_tokens=4, grid=(1, 4, 4), content_hash="0" * 16))
    yield dump(Sent(generation=0, sent_tokens=4, num_bytes=8))


async def _answer(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield {"index": 0, "token_ids": [5], "finish_reason": "stop"}


def a_processor(num_prefill: int = 1, num_encode: int = 1, answer: Any = _answer) -> Processor:
    prefill_ids = list(range(1, num_prefill + 1))
    encode_ids = list(range(11, num_encode + 11))
    peers = Peers(
        prefill=FakePeer(prefill_ids, answer),
        prefill_transfer=FakePeer(prefill_ids, _control),
        encode=FakePeer(encode_ids, _encode),
        encode_transfer=FakePeer(encode_ids, _control),
    )
    return Processor(SETTINGS, peers, {"image": PAD}, Numbers(512))


async def ask(processor: Processor, **fields: Any) -> list[dict[str, Any]]:
    request = {"token_ids": [1, 2], **fields}
    return [chunk async for chunk in processor.generate(request, FakeContext())]


async def test_warm_up_visits_every_pair_of_workers() -> None:
    processor = a_processor(num_prefill=2, num_encode=2)
    await asyncio.wait_for(processor.warm_up(FakeContext()), DEADLINE_S)
    peers = processor._peers
    pairs = [
        (prefill, encode)
        for (prefill, _), (encode, _) in zip(peers.prefill.calls, peers.encode.calls, strict=True)
    ]
    assert sorted(pairs) == [(1, 11), (1, 12), (2, 11), (2, 12)]


@pytest.mark.parametrize("with_picture", [False, True])
async def test_what_could_end_an_engine_reaches_no_worker(with_picture: bool) -> None:
    processor = a_processor(num_prefill=2)
    fields: dict[str, Any] = {"stop_conditions": {"stop_token_ids": [600]}}
    if with_picture:
        fields |= {"token_ids": [PAD], "multi_modal_data": {"image_url": [{"Url": "data:,"}]}}
    with pytest.raises(InvalidArgument, match=r"^stop_token_ids: 600 is not a token"):
        await asyncio.wait_for(ask(processor, **fields), DEADLINE_S)
    peers = processor._peers
    workers = (peers.prefill, peers.prefill_transfer, peers.encode, peers.encode_transfer)
    assert [peer.calls for peer in workers] == [[]] * 4


@pytest.mark.parametrize("guided", [None, {"regex": "a"}])
async def test_an_answer_that_the_engine_aborts_is_an_error(guided: Any) -> None:
    """R14. A grammar that allows no further token is the client's."""

    async def aborts(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield {"index": 0, "token_ids": [5]}
        yield {"index": 0, "token_ids": [], "finish_reason": "cancelled"}

    asked = ask(a_processor(answer=aborts), sampling_options={"guided_decoding": guided})
    with pytest.raises(InvalidArgument if guided else HttpError, match=r"no further|abort"):
        await asyncio.wait_for(asked, DEADLINE_S)


async def test_an_answer_that_breaks_off_is_an_error() -> None:
    """R14: never a partial answer with status 200."""

    async def breaks_off(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield {"index": 0, "token_ids": [5]}

    with pytest.raises(HttpError) as error:
        await asyncio.wait_for(ask(a_processor(answer=breaks_off)), DEADLINE_S)
    assert error.value.code == 503


async def test_one_finished_choice_of_two_is_not_an_answer() -> None:
    with pytest.raises(HttpError):
        await asyncio.wait_for(ask(a_processor(), sampling_options={"n": 2}), DEADLINE_S)


async def test_a_silent_engine_is_waited_for_while_its_worker_is_alive() -> None:
    async def slow(request: dict[str, Any]) -> AsyncIterator[Any]:
        await probed_often.wait()
        yield {"index": 0, "token_ids": [5], "finish_reason": "stop"}

    async def counting(request: dict[str, Any]) -> AsyncIterator[Any]:
        pings.append(request["op"])
        if len(pings) >= 5:
            probed_often.set()
        yield dump(Done())

    pings: list[str] = []
    probed_often = asyncio.Event()
    processor = a_processor(answer=slow)
    processor._peers.prefill_transfer.answers = counting
    assert len(await asyncio.wait_for(ask(processor), DEADLINE_S)) == 1
    assert set(pings) == {"ping"}


async def test_a_silent_engine_whose_worker_is_dead_is_an_error() -> None:
    async def silent(request: dict[str, Any]) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield {}

    processor = a_processor(answer=silent)
    processor._peers.prefill_transfer.answers = silent
    with pytest.raises(HttpError) as error:
        await asyncio.wait_for(ask(processor), DEADLINE_S)
    assert error.value.code == 503
