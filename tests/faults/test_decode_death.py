# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the loss of a decode worker costs, and the loss of its prefill worker: their requests.

Nobody waits for the other one's minutes, and nothing stays on those who live on (R14, R16).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import E_P_D, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.faults import SEEN_DEADLINE_S, answers_again, asking, paused
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, status, wait_until

DEPLOYMENT = E_P_D

QUESTION = "What is this?"
SMALL = (4, 4)
LONG = 6000  # tokens: ten seconds at least, of which a test looks at the first few
SOME = 500  # of which a shutdown waits for the last
EXIT_DEADLINE_S = 60.0
# Two probes with a time-out of a second each, a second apart, and room for two busy cores.
ERROR_DEADLINE_S = 15.0
HOME_DEADLINE_S = 15.0
READY_DEADLINE_S = 180.0


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_a_decode_worker_that_dies_costs_its_requests(
    stack: LocalStack, oracle: Oracle, clients: ThreadPoolExecutor
) -> None:
    others = {p.name: p.pid for p in stack.processes if p.name != "decode-0"}
    answers = [_answering(clients, stack, stream) for stream in (False, True)]
    assert wait_until(lambda: _counts(stack) == (0, 2), SEEN_DEADLINE_S), _counts(stack)
    with _engine_paused(stack, "decode-0"):
        # Nobody fetches the KV of this one: the prefill worker has to be told.
        answers.append(_answering(clients, stack, stream=False))
        assert wait_until(lambda: _counts(stack) == (1, 3), SEEN_DEADLINE_S), _counts(stack)
        stack.kill("decode-0")
        unary, stream, unfetched = _outcomes(answers)
    assert [unary.status, unfetched.status] == [503, 503]
    _assert_broke_off(stream)
    alive = ("processor", "encode-0", "prefill-0")
    assert wait_until(lambda: not leftovers(stack, *alive), HOME_DEADLINE_S), leftovers(
        stack, *alive
    )
    started = time.monotonic()
    assert ask(stack.base_url, MODEL_NAME, [], QUESTION).status == 503
    assert time.monotonic() - started < ERROR_DEADLINE_S
    stack.restart("decode-0")
    stack.wait_ready(READY_DEADLINE_S)
    _assert_serves(stack, oracle)
    assert {p.name: p.pid for p in stack.processes if p.name != "decode-0"} == others


def test_a_decode_worker_that_hangs_costs_its_requests(
    stack: LocalStack, oracle: Oracle, clients: ThreadPoolExecutor
) -> None:
    answers = [_answering(clients, stack, stream) for stream in (False, True)]
    assert wait_until(lambda: _counts(stack) == (0, 2), SEEN_DEADLINE_S), _counts(stack)
    with paused(stack, "decode-0"):
        unary, stream = _outcomes(answers)
    assert unary.status == 503
    _assert_broke_off(stream)
    assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)
    answers_again(stack)
    _assert_serves(stack, oracle)


def test_a_decode_worker_that_shuts_down_finishes_its_answers(
    stack: LocalStack, oracle: Oracle, clients: ThreadPoolExecutor
) -> None:
    with _engine_paused(stack, "decode-0"):  # they cannot end before they are told to hurry
        answers = [_answering(clients, stack, stream, SOME) for stream in (False, True)]
        assert wait_until(lambda: _counts(stack) == (2, 2), SEEN_DEADLINE_S), _counts(stack)
    assert stack.terminate("decode-0", EXIT_DEADLINE_S) == 0
    for answer in _outcomes(answers):
        assert answer.ok, answer.error
        assert len(answer.token_ids) == SOME
    stack.restart("decode-0")
    stack.wait_ready(READY_DEADLINE_S)
    _assert_serves(stack, oracle)


def test_a_prefill_worker_that_dies_before_its_kv_was_fetched(
    stack: LocalStack, oracle: Oracle, clients: ThreadPoolExecutor
) -> None:
    image = data_url(patchwork(460, *SMALL))
    with asking(stack, [image], QUESTION, LONG):
        assert wait_until(lambda: _counts(stack) == (0, 1), SEEN_DEADLINE_S), _counts(stack)
        # The decode engine stands still too: its answer must not end before the test does.
        with _engine_paused(stack, "prefill-0"), _engine_paused(stack, "decode-0"):
            waiting = [_answering(clients, stack, stream) for stream in (False, True)]
            assert wait_until(lambda: _counts(stack) == (2, 3), SEEN_DEADLINE_S), _counts(stack)
            stack.kill("prefill-0")
            unary, stream = _outcomes(waiting)
        assert unary.status == 503
        _assert_broke_off(stream)
        # The decode worker has been told too, and goes on with what it has the KV of.
        assert wait_until(lambda: status(stack, "decode")["engine_requests"] == 1, HOME_DEADLINE_S)
    alive = ("processor", "encode-0", "decode-0")
    assert wait_until(lambda: not leftovers(stack, *alive), HOME_DEADLINE_S), leftovers(
        stack, *alive
    )
    stack.restart("prefill-0")
    stack.wait_ready(READY_DEADLINE_S)
    _assert_serves(stack, oracle)


def _counts(stack: LocalStack) -> tuple[int, int]:
    """Requests with a picture whose KV is not fetched yet, and requests in the decode engine.

    A picture's transfer is open before its request is in any engine, until its KV was fetched.
    """
    return (
        len(status(stack, "prefill")["transfers"]),
        status(stack, "decode")["engine_requests"],
    )


def _answering(
    clients: ThreadPoolExecutor, stack: LocalStack, stream: bool, max_tokens: int = LONG
) -> Future[Answer]:
    image = data_url(patchwork(460, *SMALL))
    return clients.submit(
        *(ask, stack.base_url, MODEL_NAME, [image], QUESTION, max_tokens),
        stream=stream,
        ignore_eos=True,
    )


def _outcomes(answers: list[Future[Answer]]) -> list[Answer]:
    give_up_at = time.monotonic() + ERROR_DEADLINE_S
    return [answer.result(give_up_at - time.monotonic()) for answer in answers]


@contextmanager
def _engine_paused(stack: LocalStack, name: str) -> Iterator[None]:
    """The engine of a worker stands still; the worker itself goes on, and takes requests."""
    (worker,) = (psutil.Process(p.pid) for p in stack.processes if p.name == name)
    engines = [p for p in worker.children(recursive=True) if "scheduler" in " ".join(p.cmdline())]
    assert engines
    for engine in engines:
        engine.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for engine in engines:
            if engine.is_running():
                engine.send_signal(signal.SIGCONT)


def _assert_broke_off(stream: Answer) -> None:
    """By an event; a stream that had no token yet may have the status instead."""
    assert stream.error is not None, stream.raw
    assert stream.error["code"] == 503
    assert stream.finish_reason is None


def _assert_serves(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(491, *SMALL)
    answer = ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, logprobs=True)
    assert_exact(answer, oracle.generate([image], QUESTION, 16))
