# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Hostile media through the whole stack: one request is refused, or answered exactly; no more.

The same processes serve all of it, and take no more memory afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask
from tests.support.deployments import FAULTS, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.footprint import bounded_memory
from tests.support.hostile_media import CASES, MIB, PAGES, PICTURE, PNG, Case, inline
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.web import serve

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
MAX_TOKENS = 6
PROMPTLY_S = 5.0
# A bootstrap time-out, which is what `DEPLOYMENT` sets, and 10 s before it: the frontend asks the
# server as well, for the size of the picture.
HELD_S = 8.0
HELD_BY_FRONTEND_S = 10.0
A_CHECK_EVERY = 10
# Of an encode worker, over the whole module: what stays, and what was taken at any moment. A
# picture that claims 81 million pixels takes 4 bytes for each, until its data ends.
MAX_GROWTH_MIB = 400
MAX_PEAK_GROWTH_MIB = 700


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with serve(PAGES) as url:
        yield url


@pytest.fixture(scope="module")
def expect(oracle: Oracle) -> functools.partial[OracleAnswer]:
    """The answer to one picture."""
    return functools.partial(oracle.generate, question=QUESTION, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module", autouse=True)
def workers_stay_as_they_are(stack: LocalStack) -> Iterator[None]:
    """The same processes at the end as at the start, not much larger at any time."""
    for _ in range(2 * DEPLOYMENT.num_encode):
        assert ask(stack.base_url, MODEL_NAME, [inline(PNG)], QUESTION).ok
    processes = stack.processes
    with bounded_memory(stack, "encode", MAX_GROWTH_MIB, MAX_PEAK_GROWTH_MIB):
        yield
    assert stack.processes == processes


@pytest.mark.parametrize("case", [c for c in CASES if not c.waits], ids=lambda case: case.name)
def test_is_refused_or_served(
    stack: LocalStack, web: str, expect: functools.partial[OracleAnswer], case: Case
) -> None:
    answer = _ask(stack, case.url(web))
    if case.served_as is None:
        _assert_refused(answer, case)
    else:
        assert_exact(answer, expect([case.served_as]))
    assert answer.total_s < PROMPTLY_S
    if CASES.index(case) % A_CHECK_EVERY == 0:
        assert_exact(_ask(stack, inline(PNG)), expect([PICTURE]))


@pytest.mark.nightly
def test_slow_servers_hold_no_request_beyond_the_deadline(
    stack: LocalStack, web: str, expect: functools.partial[OracleAnswer]
) -> None:
    slow = [case for case in CASES if case.waits]
    with ThreadPoolExecutor(len(slow)) as clients:
        asked = [clients.submit(_ask, stack, case.url(web)) for case in slow]
        meanwhile = _ask(stack, inline(PNG))
        answers = [future.result() for future in asked]
    assert_exact(meanwhile, expect([PICTURE]))
    assert meanwhile.total_s < PROMPTLY_S
    for case, answer in zip(slow, answers, strict=True):
        _assert_refused(answer, case)
        assert answer.total_s < HELD_BY_FRONTEND_S + HELD_S


def test_too_large_a_body_is_refused(stack: LocalStack) -> None:
    """Each picture is within its own limit."""
    answer = ask(stack.base_url, MODEL_NAME, [inline(bytes(10 * MIB))] * 4, QUESTION)
    assert answer.status == 413
    assert "exceeds the limit of 45 MB" in answer.error_message


@pytest.mark.parametrize("count", [65, 300, 500])
def test_too_many_pictures_are_refused(stack: LocalStack, count: int) -> None:
    answer = ask(stack.base_url, MODEL_NAME, [inline(PNG)] * count, QUESTION)
    assert answer.status == 400
    assert f"{count} media items" in answer.error_message
    assert "at most 64" in answer.error_message
    assert "--mm-resume-max-media-items" in answer.error_message
    assert answer.total_s < PROMPTLY_S


def test_all_is_well_afterwards(stack: LocalStack, expect: functools.partial[OracleAnswer]) -> None:
    assert_exact(_ask(stack, inline(PNG)), expect([PICTURE]))


def _ask(stack: LocalStack, url: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, MAX_TOKENS, timeout_s=60)


def _assert_refused(answer: Answer, case: Case) -> None:
    print(f"{answer.total_s:.3f} s, {answer.status}: {answer.error_message}")
    assert answer.status == 400, answer.raw
    if case.frontend_says is None:
        assert case.is_said_in(answer.error_message)
    else:
        assert case.frontend_says in answer.error_message
