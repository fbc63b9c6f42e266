# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Random requests, and those that once broke something: nobody else notices any of them.

`make fuzz` sends other ones, for longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from examples.local_stack import LocalStack
from tests.fuzzing.bystander import Question, questions_for
from tests.fuzzing.found import FOUND
from tests.fuzzing.requests import Request, request_of
from tests.fuzzing.run import Fuzz, Report
from tests.support.deployments import FAULTS
from tests.support.hostile_media import PAGES
from tests.support.oracle import Oracle
from tests.support.web import serve

DEPLOYMENT = FAULTS
SEED = 14
REQUESTS = 150
DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with serve(PAGES) as url:
        yield url


@pytest.fixture(scope="module")
def questions(oracle: Oracle) -> list[Question]:
    return questions_for(oracle)


@pytest.mark.full
def test_nobody_notices_what_once_broke_something(
    stack: LocalStack, questions: list[Question], web: str
) -> None:
    _assert_nothing_broke(Fuzz(stack, questions, web).run(FOUND, DEADLINE_S, clients=1))


@pytest.mark.full
def test_nobody_notices_random_requests(
    stack: LocalStack, questions: list[Question], web: str
) -> None:
    report = Fuzz(stack, questions, web).run(_random(), DEADLINE_S)
    _assert_nothing_broke(report)
    assert report.outcomes.total() == REQUESTS
    assert report.outcomes["answered"] > REQUESTS // 10
    assert report.outcomes["refused with 400"] > REQUESTS // 10


def _random() -> Iterable[Request]:
    return (request_of(SEED, index) for index in range(REQUESTS))


def _assert_nothing_broke(report: Report) -> None:
    print(report.outcomes, report.slowest)
    assert report.problems == []
    assert report.ok, report.left_behind
