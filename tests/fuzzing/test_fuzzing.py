# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The fuzzer: the same requests for the same seed, and it sees what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from examples.local_stack import LocalStack, ProcessInfo
from tests.fuzzing.found import FOUND
from tests.fuzzing.requests import TEXT, Request, request_of
from tests.fuzzing.run import Problem, Report, requests_in, status_of
from tests.fuzzing.sampling import VOCABULARY
from tests.fuzzing.watch import Watch
from tests.support.client import Answer
from tests.support.hostile_media import MIB
from tests.support.worker_status import wait_until

SEED = 1
COUNT = 600
"""As many as a minute or two send."""
SEEN_S = 10.0


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [request_of(SEED, index) for index in range(COUNT)]


def test_a_request_depends_on_its_seed_and_number_alone(requests: list[Request]) -> None:
    for index in (COUNT - 1, 0, 300):
        assert request_of(SEED, index) == requests[index]
    assert request_of(SEED + 1, 0) != requests[0]


def test_requests_come_back_from_a_file(requests: list[Request]) -> None:
    small = [r for r in requests if len(r.content) < MIB][:100]
    report = Report(problems=[Problem("broke", small), Problem("again", small[:3])])
    again = requests_in(json.dumps(report.as_dict))
    assert [r.content for r in again] == [r.content for r in small]
    assert again == small


def _ids(request: Request, field: str) -> list[int]:
    body = request.body if isinstance(request.body, dict) else {}
    ids = body.get(field)
    return [i for i in ids if isinstance(i, int)] if isinstance(ids, list) else []


#: What a request has that once broke something.
KINDS: dict[str, Callable[[Request], bool]] = {
    "floor-and-stop-beyond-the-vocabulary": lambda r: (
        bool(r.body["min_tokens"]) and max(_ids(r, "stop_token_ids"), default=0) >= VOCABULARY
        if isinstance(r.body, dict) and isinstance(r.body.get("min_tokens"), int)
        else False
    ),
    "prompt-beyond-the-vocabulary": lambda r: (
        r.path == TEXT and max(_ids(r, "prompt"), default=0) >= VOCABULARY
    ),
    "an-id-of-its-own": lambda r: "x-dynamo-request-id" in r.headers,
    "more-than-32-mib": lambda r: len(r.content) > 32 * MIB,
    "audio": lambda r: b'"input_audio"' in r.content,
    "drawn-by-a-grammar": lambda r: b'"guided_grammar"' in r.content and b"root" in r.content,
    "hangs-up": lambda r: r.hang_up_after_s is not None,
    "no-json": lambda r: isinstance(r.body, str),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_once_broke_something_is_among_them(requests: list[Request], kind: str) -> None:
    assert any(KINDS[kind](request) for request in requests)


def test_names_tell_requests_apart(requests: list[Request]) -> None:
    every = [*requests, *FOUND]
    assert len({request.name for request in every}) == len(every)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer(200), 200),
        (Answer(400, error={"message": "no"}), 400),
        (Answer(200, error={"message": "broken", "code": 500}), 500),
        (Answer(200, error={"message": "no code"}), 500),
        (Answer(503, error={"code": 400}), 503),
    ],
)
def test_the_status_is_that_of_the_end(answer: Answer, status: int) -> None:
    assert status_of(answer) == status


class _Processes:
    """A stack of one process with a child."""

    def __init__(self, pid: int) -> None:
        self.processes = [ProcessInfo("prefill-0", pid, cast(Any, None))]


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process that starts another one, tells its id, and waits for it."""
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
        "child.kill()\n"
        "child.wait()\n"
        "input()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_the_end_of_a_child_is_seen(parent: subprocess.Popen[str]) -> None:
    watch = Watch(cast(LocalStack, _Processes(parent.pid)))
    assert watch.dead() == []
    assert parent.stdin is not None
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert wait_until(lambda: watch.dead() == ["prefill-0"], SEEN_S)
    watch.begin()
    assert watch.dead() == []
