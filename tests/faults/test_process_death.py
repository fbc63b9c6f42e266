# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed or hang, at every step of a request: others do not notice, blocks come
home, and what is restarted, or goes on, is used again without a restart of the others (R6, R16).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.faults import (
    SEEN_DEADLINE_S,
    answers_again,
    encode_workers,
    home_after,
    paused,
)
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import patchwork
from tests.support.worker_status import status, status_of, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
SMALL = patchwork(800, 4, 4)
LARGE = patchwork(801, 15, 11)
"""165 tokens, for a pool of 128."""
MAX_TOKENS = 8
MANY_TOKENS = 1500
BOOTSTRAP_S = 8.0
SLACK_S = 4.0
"""On top of a time-out of the deployment: the processor's own two seconds, and a busy machine."""
DEAD_DEADLINE_S = 40.0
"""The lease of a dead worker ends after ten seconds, then come two failed probes and the drain."""
ANSWER_DEADLINE_S = 90.0

steps = pytest.mark.parametrize("moment", list(Moment))


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> dict[str, OracleAnswer]:
    """The right answers for the small picture and for the large one."""
    return {
        "small": oracle.generate([SMALL], QUESTION, MAX_TOKENS),
        "large": oracle.generate([LARGE], QUESTION, MAX_TOKENS),
    }


@pytest.fixture(autouse=True)
def everybody_is_ready(stack: LocalStack) -> Iterator[None]:
    """Before and after each test, also one that failed."""
    stack.wait_ready(READY_DEADLINE_S)
    answers_again(stack)
    yield
    stack.wait_ready(READY_DEADLINE_S)


def test_an_encode_worker_killed_between_rounds_costs_no_request(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: dict[str, OracleAnswer]
) -> None:
    """Neither the request it works on, nor those whose images it has encoded before.

    tests/test_main_job.py kills an encode worker whose tower computes.
    """
    moment = Moment.BETWEEN_ROUNDS
    undisturbed = _stream(stack)
    assert undisturbed.ok
    with _caught(stack, threads, moment, len(encode_workers(stack))) as (name, large, streams):
        stack.kill(name)
    with _comes_back(stack, name):
        killed_at = time.monotonic()
        _check(_ask(stack, SMALL), expected["small"], moment)
        _check(large.result(ANSWER_DEADLINE_S), expected["large"], moment)
        print(f"answered {time.monotonic() - killed_at:.1f} s after the death of {name}")
        for stream in streams:
            assert stream.result(ANSWER_DEADLINE_S).token_ids == undisturbed.token_ids
        assert status(stack, "processor")["totals"]["encode_retries"] > 0
    _others_are_home(stack, killed_at, name)
    _serves_again(stack, name, expected)


@steps
def test_a_hung_encode_worker_costs_no_request(
    stack: LocalStack,
    threads: ThreadPoolExecutor,
    expected: dict[str, OracleAnswer],
    moment: Moment,
) -> None:
    """What it does when it goes on is late, and harmless.

    It goes on before its lease has ended; longer hangs are in test_lost_lease.py.
    """
    before = status(stack, "processor")["totals"]["encode_retries"]
    with ExitStack() as hanging:
        with _caught(stack, threads, moment) as (name, large, _):
            paused_at = hanging.enter_context(paused(stack, name))
        assert wait_until(lambda: _quarantined(stack) > 0, SEEN_DEADLINE_S)
        print(f"given up after {time.monotonic() - paused_at:.1f} s")
        _check(_ask(stack, SMALL), expected["small"], moment)
    went_on_at = time.monotonic()
    _check(large.result(ANSWER_DEADLINE_S), expected["large"], moment)
    print(f"answered {time.monotonic() - paused_at:.1f} s after {name} stopped")
    assert status(stack, "processor")["totals"]["encode_retries"] > before
    home_after(stack, went_on_at, DEAD_DEADLINE_S)
    print(f"oddities: {status(stack, 'prefill')['oddities']}")
    _serves_again(stack, name, expected)


def test_without_encode_workers_pictures_are_refused_and_text_is_served(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: dict[str, OracleAnswer]
) -> None:
    names = encode_workers(stack)
    with _caught(stack, threads, Moment.IN_THE_TOWER) as (_, large, _):
        for name in names:
            stack.kill(name)
    with _comes_back(stack, *names):
        killed_at = time.monotonic()
        assert large.result(ANSWER_DEADLINE_S).status == 503
        assert time.monotonic() - killed_at < BOOTSTRAP_S + SLACK_S
        refused = _ask(stack, SMALL)
        assert refused.status == 503
        assert refused.total_s < BOOTSTRAP_S + SLACK_S
        assert _ask(stack).ok, "text needs no encode worker"
        print(f"503 after {refused.total_s:.2f} s: {refused.error}")
    _others_are_home(stack, killed_at, *names)
    for name in names:
        _serves_again(stack, name, expected)


def test_a_killed_prefill_worker(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: dict[str, OracleAnswer]
) -> None:
    """Whatever it was doing ends in an error; the encode workers go on without a restart."""
    with _requests_at_every_step(stack, threads) as under_way:
        stack.kill("prefill-0")
    with _comes_back(stack, "prefill-0"):
        killed_at = time.monotonic()
        _all_fail(under_way, killed_at, BOOTSTRAP_S + SLACK_S)
        home_after(stack, killed_at, DEAD_DEADLINE_S, "processor", *encode_workers(stack))
        assert _ask(stack).status in (404, 503)
    for name in encode_workers(stack):
        _serves_again(stack, name, expected)


def test_a_hung_prefill_worker(
    stack: LocalStack, threads: ThreadPoolExecutor, expected: dict[str, OracleAnswer]
) -> None:
    with ExitStack() as hanging:
        with _requests_at_every_step(stack, threads) as under_way:
            paused_at = hanging.enter_context(paused(stack, "prefill-0"))
        text = _ask(stack)
        assert text.status == 503
        assert text.total_s < BOOTSTRAP_S + SLACK_S
        assert _error_code(under_way["stream"].result(ANSWER_DEADLINE_S)) == 503
    print(f"text: 503 after {text.total_s:.1f} s")
    large = under_way["picture"].result(ANSWER_DEADLINE_S)
    assert large.ok or large.status == 503
    home_after(stack, paused_at, DEAD_DEADLINE_S)
    answers_again(stack)
    for name in encode_workers(stack):
        _serves_again(stack, name, expected)


@pytest.mark.parametrize("hangs_before", [False, True], ids=["killed", "hung"])
def test_a_lost_processor(
    stack: LocalStack,
    threads: ThreadPoolExecutor,
    expected: dict[str, OracleAnswer],
    hangs_before: bool,
) -> None:
    """The workers give everything back by themselves; one that hangs is missed by time alone."""
    workers = [*encode_workers(stack), "prefill-0"]
    with _requests_at_every_step(stack, threads) as under_way:
        lose = stack.pause if hangs_before else stack.kill
        lose("processor")
        lost_at = time.monotonic()
    with _comes_back(stack, "processor"):
        if hangs_before:
            home_after(stack, lost_at, DEAD_DEADLINE_S, *workers)
            stack.kill("processor")
        killed_at = time.monotonic()
        _all_fail(under_way, killed_at, SLACK_S)
        home_after(stack, lost_at, DEAD_DEADLINE_S, *workers)
        assert _ask(stack).status in (404, 503)
    stack.wait_ready(READY_DEADLINE_S)
    # The frontend goes on asking the one that is gone, now and then, until its lease has ended.
    assert wait_until(lambda: all(_ask(stack, SMALL).ok for _ in range(4)), DEAD_DEADLINE_S)
    for name in encode_workers(stack):
        _serves_again(stack, name, expected)


def _check(answer: Answer, expected: OracleAnswer, moment: Moment) -> None:
    """Exact. Between rounds, a lost transfer may hold both halves of a pool as small as this one;
    while they are in quarantine others hear 503 in time.
    """
    if moment is Moment.BETWEEN_ROUNDS and answer.status == 503:
        print("503: the whole pool is in quarantine")
        assert answer.total_s < BOOTSTRAP_S + SLACK_S
    else:
        assert_exact(answer, expected)


def _ask(stack: LocalStack, image: object = None) -> Answer:
    urls = [] if image is None else [data_url(image)]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS)


def _stream(stack: LocalStack) -> Answer:
    extra = {"stream": True, "ignore_eos": True}
    return ask(stack.base_url, MODEL_NAME, [data_url(SMALL)], QUESTION, MANY_TOKENS, **extra)


def _error_code(answer: Answer) -> int | None:
    return answer.error and answer.error["code"]


@contextmanager
def _caught(
    stack: LocalStack, threads: ThreadPoolExecutor, moment: Moment, num_streams: int = 0
) -> Iterator[tuple[str, Future[Answer], list[Future[Answer]]]]:
    """A large picture at this moment, with its encode worker, while answers stream."""
    streams = [threads.submit(_stream, stack) for _ in range(num_streams)]
    assert wait_until(lambda: _engine_requests(stack) == num_streams, SEEN_DEADLINE_S)
    with holding(stack, moment) as hold:
        large = threads.submit(_ask, stack, LARGE)
        name = hold.caught()
        assert not any(stream.done() for stream in streams), "their answers were too short"
        yield name, large, streams


@contextmanager
def _requests_at_every_step(
    stack: LocalStack, threads: ThreadPoolExecutor
) -> Iterator[dict[str, Future[Answer]]]:
    """A picture between its rounds, and an answer that streams."""
    with _caught(stack, threads, Moment.BETWEEN_ROUNDS, 1) as (_, picture, (stream,)):
        yield {"picture": picture, "stream": stream}


def _all_fail(under_way: dict[str, Future[Answer]], since: float, deadline_s: float) -> None:
    for name, future in under_way.items():
        answer = future.result(ANSWER_DEADLINE_S)
        print(f"{name}: {answer.status} {answer.error} after {time.monotonic() - since:.1f} s")
        assert _error_code(answer) == 503, answer.raw[-1:]
    assert time.monotonic() - since < deadline_s


def _engine_requests(stack: LocalStack) -> int:
    return int(status(stack, "prefill")["engine_requests"])


def _quarantined(stack: LocalStack) -> int:
    return int(status(stack, "prefill")["pool"]["quarantined"])


@contextmanager
def _comes_back(stack: LocalStack, *names: str) -> Iterator[None]:
    """Whatever becomes of these processes in the block, they are started again at its end."""
    try:
        yield
    finally:
        for name in names:
            stack.restart(name)


def _others_are_home(stack: LocalStack, since: float, *names: str) -> None:
    """While these start again."""
    others = [name for name in stack.worker_urls if name not in names]
    home_after(stack, since, DEAD_DEADLINE_S, *others)


def _serves_again(stack: LocalStack, name: str, expected: dict[str, OracleAnswer]) -> None:
    """A picture that it encodes is answered right; those that others encode are as well."""
    stack.wait_ready(READY_DEADLINE_S)
    before = status_of(stack, name)["totals"]["transfers"]

    def served() -> bool:
        assert_exact(_ask(stack, SMALL), expected["small"])
        return bool(status_of(stack, name)["totals"]["transfers"] > before)

    assert wait_until(served, SEEN_DEADLINE_S), f"{name} is not used"
