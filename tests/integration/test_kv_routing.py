# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--router-mode kv`: a conversation stays with the prefill worker that has its pictures' KV."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import KV_ROUTING, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import get, status, statuses, wait_until

DEPLOYMENT = KV_ROUTING

MAX_TOKENS = 8
SIZE = (7, 6)
SEEN_DEADLINE_S = 20.0
QUESTIONS = ["What is this?", "What colour is it?", "How many are there?", "Is it a star?"]
EVENTS = "kv_cache_events_applied"


def test_each_turn_goes_where_its_beginning_is(stack: LocalStack, oracle: Oracle) -> None:
    """Three conversations in turns: workers that take turns would share each of them."""
    images = [patchwork(1400 + i, *SIZE) for i in range(3)]
    served: list[list[int]] = [[] for _ in images]
    for turn in range(len(QUESTIONS)):
        for i, image in enumerate(images):
            answer, worker = _turn(stack, oracle, image, turn)
            served[i].append(worker)
            cached = _cached_tokens(answer)
            assert (cached > num_tokens(image)) == (turn > 0), (turn, cached)
    assert [len(set(workers)) for workers in served] == [1, 1, 1], served


def test_new_conversations_at_once_use_both_workers(stack: LocalStack, oracle: Oracle) -> None:
    """Although all prompts begin alike, which one of them has cached."""
    images = [patchwork(1410 + i, *SIZE) for i in range(8)]
    expected = [_expected(oracle, [image], 0) for image in images]
    before = _transfers(stack)
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, _messages([image], 0)), images))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    assert all(now > then for now, then in zip(_transfers(stack), before, strict=True))


def test_a_new_picture_behind_a_known_one_keeps_the_worker(
    stack: LocalStack, oracle: Oracle
) -> None:
    known = patchwork(1420, *SIZE)
    _, worker = _turn(stack, oracle, known, 0)
    for i in range(3):
        with _Served(stack) as served:
            answer = _ask(stack, _messages([known, patchwork(1421 + i, *SIZE)], 0))
        assert served.worker == worker
        assert _cached_tokens(answer) > num_tokens(known)


def test_figures(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(1430, *SIZE)
    before = status(stack, "processor")["totals"]
    _turn(stack, oracle, image, 0)
    answer, _ = _turn(stack, oracle, image, 1)
    assert answer.usage is not None
    after = status(stack, "processor")["totals"]
    risen = {name: after[name] - before[name] for name in after if name.startswith("rout")}
    assert risen["routed"] == 2
    assert risen["routed_hits"] >= 1
    assert risen["routed_overlap_tokens"] > num_tokens(image)
    assert risen["routing_failures"] == 0


def test_a_worker_leaves_and_its_conversation_goes_on(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(1440, *SIZE)
    _, worker = _turn(stack, oracle, image, 0)
    stack.kill(f"prefill-{worker}")
    for turn in (1, 2):
        answer = _ask(stack, _messages([image], turn))
        assert_exact(answer, _expected(oracle, [image], turn))
    assert _cached_tokens(answer) > num_tokens(image), "the other one has it by now"


def test_a_worker_joins_and_is_used(stack: LocalStack, oracle: Oracle) -> None:
    stack.kill("prefill-0")
    image = patchwork(1450, *SIZE)
    for turn in (0, 1):
        answer = _ask(stack, _messages([image], turn))
        assert_exact(answer, _expected(oracle, [image], turn))
    stack.restart("prefill-0")
    stack.wait_ready(READY_DEADLINE_S)
    images = [patchwork(1451 + i, *SIZE) for i in range(8)]
    before = _transfers(stack)
    with ThreadPoolExecutor(len(images)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, _messages([image], 0)), images))
    assert all(answer.ok for answer in answers)
    assert all(now > then for now, then in zip(_transfers(stack), before, strict=True))


class _Served:
    """Which of the prefill workers answered what is asked in the block."""

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self.worker = -1

    def __enter__(self) -> _Served:
        self._before = _transfers(self._stack)
        return self

    def __exit__(self, *_: object) -> None:
        risen = [
            now - then for now, then in zip(_transfers(self._stack), self._before, strict=True)
        ]
        assert sorted(count > 0 for count in risen) == [False, True], risen
        self.worker = risen.index(max(risen))


def _transfers(stack: LocalStack) -> list[int]:
    return [state["totals"]["transfers"] for state in statuses(stack, "prefill")]


def _turn(stack: LocalStack, oracle: Oracle, image: Image.Image, turn: int) -> tuple[Answer, int]:
    """The answer to one turn about a picture, once the router has heard of it, and by whom."""
    known = _events(stack)
    with _Served(stack) as served:
        answer = _ask(stack, _messages([image], turn))
    assert_exact(answer, _expected(oracle, [image], turn))
    assert wait_until(lambda: _events(stack) > known, SEEN_DEADLINE_S), "no event of its KV"
    return answer, served.worker


def _messages(images: list[Image.Image], turn: int) -> list[dict[str, Any]]:
    """A conversation up to its question number `turn`, with the pictures at its beginning."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return _conversation(parts, turn)


def _expected(oracle: Oracle, images: list[Image.Image], turn: int) -> Any:
    return oracle.chat(_conversation([{"type": "image"} for _ in images], turn), images, MAX_TOKENS)


def _conversation(pictures: list[dict[str, Any]], turn: int) -> list[dict[str, Any]]:
    first = {"type": "text", "text": QUESTIONS[0]}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*pictures, first]}]
    for question in QUESTIONS[1 : turn + 1]:
        messages.append({"role": "assistant", "content": "I do not know."})
        messages.append({"role": "user", "content": question})
    return messages


def _ask(stack: LocalStack, messages: list[dict[str, Any]]) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [], "", MAX_TOKENS, logprobs=True, messages=messages)


def _cached_tokens(answer: Answer) -> int:
    assert answer.usage is not None
    return int((answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _events(stack: LocalStack) -> float:
    """Events that the router has applied, by the processor's own metrics."""
    (url,) = stack.system_urls["processor"]
    lines = [line for line in get(f"{url}/metrics").text.splitlines() if line[:1] != "#"]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if EVENTS in line)
