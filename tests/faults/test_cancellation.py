# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A client that hangs up leaves nothing behind, wherever its request was (R6, R16).

On an idle machine everything is home within a second; the figures are printed.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.faults import (
    SEEN_DEADLINE_S,
    answers_again,
    asking,
    encode_workers,
    home_after,
    paused,
)
from tests.support.holds import Moment, holding
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.web import Page, serve
from tests.support.worker_status import Status, status, status_of, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
SMALL = patchwork(700, 4, 4)
LARGE = patchwork(701, 34, 34)
"""1,156 tokens: half a second or more in the tower, many rounds through the pool of 128."""
MANY_TOKENS = 1500
HOME_DEADLINE_S = 6.0


@pytest.fixture(autouse=True)
def serves_afterwards(stack: LocalStack, oracle: Oracle) -> Iterator[None]:
    """Whatever was given up, the next client gets the right answer."""
    yield
    answer = ask(stack.base_url, MODEL_NAME, [data_url(SMALL)], QUESTION)
    assert_exact(answer, oracle.generate([SMALL], QUESTION, 16))


def test_while_loading_and_while_queued_for_blocks(stack: LocalStack) -> None:
    """Four pictures that never arrive hold the whole pool; a fifth waits for it."""
    asked: list[str] = []
    page = Page(_png(SMALL), manner="stalls")
    with serve({"/stalls.png": page}, asked) as root:
        loading = asking(stack, [f"{root}/stalls.png"], QUESTION, 1, count=4)
        with loading:
            _see(lambda: _pool(stack)["free"] == 0)
            _see(lambda: sum(len(transfers) for transfers in _encoding(stack)) == 4)
            with asking(stack, [data_url(SMALL)], QUESTION, 1):
                _see(lambda: status(stack, "prefill")["waiting"] == 1)
            hung_up_at = time.monotonic()
            assert wait_until(lambda: not status(stack, "prefill")["waiting"], HOME_DEADLINE_S)
            print(f"queued: gone after {time.monotonic() - hung_up_at:.2f} s")
            assert sum(len(transfers) for transfers in _encoding(stack)) == 4, "others went on"
        home_after(stack, time.monotonic(), HOME_DEADLINE_S)


def test_in_the_tower(stack: LocalStack) -> None:
    """It is busy with one picture at a time: those that nobody wants any more are not begun."""
    workers = encode_workers(stack)
    # Equal ones would go to one worker, and through its tower together.
    pictures = [patchwork(700 + i, 4, 4) for i in range(2 * len(workers))]
    with holding(stack, Moment.IN_THE_TOWER) as hold:
        with ExitStack() as clients:
            for picture in pictures:
                clients.enter_context(asking(stack, [data_url(picture)], QUESTION, 1))
            _see(lambda: [len(transfers) for transfers in _encoding(stack)] == [2, 2])
        home_after(stack, time.monotonic(), HOME_DEADLINE_S)
    for _ in workers:  # they take turns
        assert ask(stack.base_url, MODEL_NAME, [data_url(SMALL)], QUESTION, 1).ok
    assert hold.visits <= 2 * len(workers)


def test_between_rounds(stack: LocalStack) -> None:
    with holding(stack, Moment.BETWEEN_ROUNDS) as hold:
        # They take each other's blocks.
        with asking(stack, [data_url(LARGE)], QUESTION, 1, count=4):
            hold.caught()
        home_after(stack, time.monotonic(), HOME_DEADLINE_S)


def test_during_a_write(stack: LocalStack) -> None:
    """A stopped receiver keeps the write in flight; nothing is home before it has ended."""
    with ExitStack() as receiver:
        with asking(stack, [data_url(SMALL)], QUESTION, 1):
            with holding(stack, Moment.IN_THE_TOWER) as hold:
                hold.caught()
                receiver.enter_context(paused(stack, "prefill-0"))
            _see(lambda: any(_in_flight(stack)))
        # The client is gone. The source of the write must stay as it is.
        assert wait_until(lambda: not status(stack, "processor")["requests"], HOME_DEADLINE_S)
        assert any(_in_flight(stack))
    home_after(stack, time.monotonic(), HOME_DEADLINE_S)
    answers_again(stack)


def test_before_the_first_token(stack: LocalStack) -> None:
    with _engine_stopped(stack):
        with asking(stack, [data_url(SMALL)], QUESTION, MANY_TOKENS):
            _see(lambda: _engine(stack) == (1, 1))
        assert wait_until(lambda: not status(stack, "processor")["requests"], HOME_DEADLINE_S)
    home_after(stack, time.monotonic(), HOME_DEADLINE_S)


@pytest.mark.parametrize("urls", [[data_url(SMALL)], []], ids=["picture", "text"])
def test_while_tokens_stream(stack: LocalStack, urls: list[str]) -> None:
    whole = ask(stack.base_url, MODEL_NAME, urls, QUESTION, MANY_TOKENS, True, ignore_eos=True)
    with asking(stack, urls, QUESTION, MANY_TOKENS):
        _see(lambda: _engine(stack)[0] == 1)
        _see(lambda: not any(_encoding(stack)))
    hung_up_at = time.monotonic()
    home_after(stack, hung_up_at, HOME_DEADLINE_S)
    assert time.monotonic() - hung_up_at < whole.total_s / 2, "the engine went on to the end"


def _see(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, SEEN_DEADLINE_S), "the moment was never seen"


def _pool(stack: LocalStack) -> dict[str, int]:
    pool: dict[str, int] = status(stack, "prefill")["pool"]
    return pool


def _engine(stack: LocalStack) -> tuple[int, int]:
    """Requests that the engine knows, and embeddings that it may ask for."""
    state: Status = status(stack, "prefill")
    return state["engine_requests"], state["embeddings_offered"]


def _encoding(stack: LocalStack) -> list[list[str]]:
    """Transfers of each encode worker that have no embedding yet."""
    return [
        [state for state in status_of(stack, name)["transfers"].values() if state == "encoding"]
        for name in encode_workers(stack)
    ]


def _in_flight(stack: LocalStack) -> list[int]:
    """Blocks of each encode worker that a write reads."""
    return [status_of(stack, name)["pool"]["held"] for name in encode_workers(stack)]


@contextmanager
def _engine_stopped(stack: LocalStack) -> Iterator[None]:
    """SGLang's scheduler stands still, the prefill worker around it does not."""
    (pid,) = [process.pid for process in stack.processes if process.name == "prefill-0"]
    children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
    try:
        for child in children:
            os.kill(child, signal.SIGSTOP)
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
