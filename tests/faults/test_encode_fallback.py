# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--encode-fallback local`: without an encode worker the engine encodes by itself, and as well."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support import videos
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import ENCODE_LOCALLY, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import LOGPROB_TOLERANCE, assert_exact, logprobs_of
from tests.support.holds import Moment, holding
from tests.support.items import Item, ask_about
from tests.support.oracle import Clip, Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status, wait_until

DEPLOYMENT = ENCODE_LOCALLY

QUESTION = "What is this?"
MAX_TOKENS = 12
SIZES = [(7, 7), (7, 6), (10, 9), (15, 11)]
IMAGES = [patchwork(500 + i, *size) for i, size in enumerate(SIZES)]
SEEN_DEADLINE_S = 60.0


@pytest.fixture
def without_encode_worker(stack: LocalStack) -> Iterator[None]:
    """The encode worker is killed, and comes back after the test."""
    stack.kill("encode-0")
    yield
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)


def test_pictures_are_exact_and_counted(
    stack: LocalStack, oracle: Oracle, without_encode_worker: None
) -> None:
    before = _fallbacks(stack)
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in IMAGES]
    first = _ask(stack, IMAGES[0])  # finds out that the worker is dead, still in discovery
    with ThreadPoolExecutor(len(IMAGES)) as threads:
        answers = [first, *threads.map(lambda image: _ask(stack, image), IMAGES[1:])]
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    both = ask(stack.base_url, MODEL_NAME, [data_url(i) for i in IMAGES[:2]], QUESTION, MAX_TOKENS)
    assert_exact(both, oracle.generate(IMAGES[:2], QUESTION, MAX_TOKENS))
    assert ask(stack.base_url, MODEL_NAME, [], QUESTION, MAX_TOKENS).ok
    assert _fallbacks(stack) == before + len(IMAGES) + 1


@pytest.mark.skipif(not videos.AVAILABLE, reason=videos.MISSING)
def test_a_video_is_to_an_engine_what_it_makes_of_it_itself(stack: LocalStack) -> None:
    """SGLang's own engine is the measure for videos of this model, not transformers."""
    clip, image = Clip(videos.patchwork_frames(8, 8), fps=1), patchwork(520, 8, 8)
    requests: list[list[Item]] = [[clip], [image, clip], [clip, image]]
    remote = [ask_about(stack, items) for items in requests]
    stack.kill("encode-0")
    local = [ask_about(stack, items) for items in requests]
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert all("mm_resume" in (answer.engine_data or {}) for answer in remote)
    assert not any("mm_resume" in (answer.engine_data or {}) for answer in local)
    for ours, own in zip(remote, local, strict=True):
        assert ours.ok and own.ok, (ours.raw, own.raw)
        assert ours.token_ids == own.token_ids
        assert ours.usage and own.usage
        assert ours.usage["prompt_tokens"] == own.usage["prompt_tokens"]
        assert logprobs_of(ours) == pytest.approx(logprobs_of(own), abs=LOGPROB_TOLERANCE)


def test_bad_pictures_are_refused_as_ever(stack: LocalStack, without_encode_worker: None) -> None:
    for url, says in [
        ("data:image/png;base64,AAAA", "send JPEG, PNG or WebP"),
        ("file:///etc/passwd", "local file access is not allowed"),
        ("http://127.0.0.1:9/p.png", "could not be reached"),
    ]:
        answer = ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS)
        assert (answer.status, says in answer.error_message) == (400, True), answer.error


def test_an_encode_worker_that_dies_in_the_middle_costs_nothing(
    stack: LocalStack, oracle: Oracle
) -> None:
    expected = oracle.generate([IMAGES[-1]], QUESTION, MAX_TOKENS)
    with ThreadPoolExecutor(1) as thread:
        with holding(stack, Moment.IN_THE_TOWER) as hold:
            asked = thread.submit(_ask, stack, IMAGES[-1])
            stack.kill(hold.caught())
        answer = asked.result(READY_DEADLINE_S)
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)
    assert_exact(answer, expected)


def test_embeddings_and_pictures_in_one_batch_of_the_engine(
    stack: LocalStack, oracle: Oracle
) -> None:
    """What SGLang refuses by default, with an exception that ends its scheduler."""
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in IMAGES]
    with ThreadPoolExecutor(len(IMAGES)) as threads:
        with _paused_scheduler(stack):
            remote = [threads.submit(_ask, stack, image) for image in IMAGES[:2]]
            assert wait_until(lambda: _in_engine(stack) == 2, SEEN_DEADLINE_S)
            stack.kill("encode-0")
            local = [threads.submit(_ask, stack, image) for image in IMAGES[2:]]
            assert wait_until(lambda: _in_engine(stack) == 4, SEEN_DEADLINE_S)
        answers = [asked.result(READY_DEADLINE_S) for asked in (*remote, *local)]
    stack.restart("encode-0")
    stack.wait_ready(READY_DEADLINE_S)
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)


@contextmanager
def _paused_scheduler(stack: LocalStack) -> Iterator[None]:
    """Requests gather in front of the engine; afterwards it takes them in one batch."""
    (prefill,) = [process for process in stack.processes if process.name == "prefill-0"]
    (scheduler,) = [
        child
        for child in psutil.Process(prefill.pid).children(recursive=True)
        if "scheduler" in " ".join(child.cmdline())
    ]
    scheduler.suspend()
    try:
        yield
    finally:
        scheduler.resume()


def _ask(stack: LocalStack, image: Image.Image) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, MAX_TOKENS, logprobs=True)


def _fallbacks(stack: LocalStack) -> int:
    return int(status(stack, "processor")["totals"]["encode_fallbacks"])


def _in_engine(stack: LocalStack) -> int:
    return int(status(stack, "prefill")["embeddings_offered"])
