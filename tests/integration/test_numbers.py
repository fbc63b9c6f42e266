# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Requests whose numbers would end an engine are refused, and nobody else notices.

Each request alone was seen to end SGLang's scheduler, or is at the edge of what does. All of them
come while another client asks the same question again and again. What is refused by which value:
tests/workers/test_numbers.py.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, request_body
from tests.support.deployments import MODEL_NAME, SMALL_POOL
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork

DEPLOYMENT = SMALL_POOL

TIMEOUT_S = 30.0
MAX_TOKENS = 24
QUESTION = "What is this?"
PICTURE = patchwork(7, 7, 6)
VOCABULARY = 512
BEYOND = f"from 0 to {VOCABULARY - 1}, its vocabulary has {VOCABULARY}"
SAMPLED = {"temperature": 1.0, "top_p": 0.9}


@dataclass(frozen=True)
class Case:
    """A body, beside the usual one, and what its refusal says."""

    name: str
    says: str
    extra: dict[str, Any]
    path: str = "chat/completions"
    with_picture: bool = False


def stop_at(token_id: int, with_picture: bool = False, **extra: Any) -> Case:
    kind = "picture" if with_picture else "text"
    return Case(
        f"stop-{token_id}-{kind}{''.join(f'-{name}' for name in extra)}",
        f"stop_token_ids: {token_id} is not a token of this model: send ids {BEYOND}",
        {"stop_token_ids": [token_id], **extra},
        with_picture=with_picture,
    )


CASES = [
    *(
        stop_at(token_id, with_picture, min_tokens=2)
        for token_id in (999_999_999, 600, VOCABULARY)
        for with_picture in (False, True)
    ),
    # Harmless alone, but not beside somebody's min_tokens.
    stop_at(600),
    # Dynamo's frontend refuses these without saying why: they have no text.
    Case("prompt-of-ids", "Invalid request", {"prompt": [5, 600, 7]}, "completions"),
    Case("token-data", "Invalid request", {"nvext": {"token_data": [5, VOCABULARY]}}),
    Case(
        "prompt-logprobs",
        f"prompt_logprobs: {VOCABULARY + 1} is not possible: send a whole number from 0 to",
        {"prompt_logprobs": VOCABULARY + 1},
    ),
    Case(
        "repetition-penalty",
        "repetition_penalty: ",
        {"repetition_penalty": 1e-45, **SAMPLED},
    ),
]


@dataclass
class Crowd:
    """What became of the requests above, and of the client beside them."""

    answers: dict[str, httpx.Response] = field(default_factory=dict)
    bystander: list[Answer] = field(default_factory=list)
    pids: list[set[int]] = field(default_factory=list)


@pytest.fixture(scope="module")
def crowd(stack: LocalStack) -> Crowd:
    """Sends them one after the other, each while a bystander is being answered."""
    crowd = Crowd(pids=[_engine(stack)])
    finished = threading.Event()

    def stand_by() -> None:
        while not finished.is_set():
            # With a minimum, an engine looks at the stop tokens of its whole batch.
            answer = ask(
                *(stack.base_url, MODEL_NAME, [data_url(PICTURE)], QUESTION, MAX_TOKENS),
                min_tokens=1,
                timeout_s=TIMEOUT_S,
            )
            crowd.bystander.append(answer)

    bystander = threading.Thread(target=stand_by)
    bystander.start()
    try:
        with httpx.Client(trust_env=False, timeout=TIMEOUT_S) as client:
            for case in CASES:
                crowd.answers[case.name] = client.post(
                    f"{stack.base_url}/{case.path}", json=_body(case)
                )
    finally:
        finished.set()
        bystander.join()
    crowd.pids.append(_engine(stack))
    return crowd


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_refused_by_the_name_of_the_field(stack: LocalStack, crowd: Crowd, case: Case) -> None:
    answer = crowd.answers[case.name]
    assert answer.status_code == 400, answer.text
    assert case.says in answer.json()["message"]


def test_the_engine_is_the_one_it_was(crowd: Crowd) -> None:
    before, after = crowd.pids
    assert before == after


def test_a_bystander_has_its_answers(crowd: Crowd, oracle: Oracle) -> None:
    expected = oracle.generate([PICTURE], QUESTION, MAX_TOKENS)
    for answer in crowd.bystander:
        assert_exact(answer, expected)


def _body(case: Case) -> dict[str, Any]:
    images = [data_url(PICTURE)] if case.with_picture else []
    body = request_body(MODEL_NAME, images, QUESTION, 8) | case.extra
    if case.path == "completions":
        del body["messages"]
    return body


def _engine(stack: LocalStack) -> set[int]:
    """Processes of the prefill worker's engine."""
    (worker,) = [process.pid for process in stack.processes if process.name == "prefill-0"]
    return {child.pid for child in psutil.Process(worker).children(recursive=True)}
