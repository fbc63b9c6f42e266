# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Every feature of a request gives what SGLang's own server gives, which has the tower in itself.

The same requests go to both, in the same order, so that their prefix caches hold the same. Texts
are compared where they are made of whole characters; token ids and log-probabilities always.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Answer, post
from tests.support.deployments import CONTEXT_LENGTH, MODEL_NAME, SMALL_POOL, Keeper, Model
from tests.support.openai_requests import CALLS, CASES, PRIMER, Case
from tests.support.sglang_server import sglang_server

DEPLOYMENT = SMALL_POOL

pytestmark = pytest.mark.nightly

TOLERANCE = 5e-4
NO_WHITESPACE = "--constrained-json-disable-any-whitespace"
ALL = (PRIMER, *CASES, *CALLS)

Answers = dict[str, Answer]


@pytest.fixture(scope="module")
def theirs(
    keeper: Keeper, models: dict[Model, Path], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    """SGLang's answers. Its server is gone before our stack starts: two cores do not carry both."""
    keeper.stop()
    log = tmp_path_factory.mktemp("sglang") / "server.log"
    arguments = ("--context-length", str(CONTEXT_LENGTH), NO_WHITESPACE)
    with sglang_server(models["random"], MODEL_NAME, log, arguments) as base_url:
        return {case.name: _ask(base_url, case, case.for_sglang) for case in ALL}


@pytest.fixture(scope="module")
def ours(theirs: Answers, keeper: Keeper) -> Answers:
    """Ours, from workers that have seen nothing else before."""
    stack = keeper.get(DEPLOYMENT)
    return {case.name: _ask(stack.base_url, case, case.ours) for case in ALL}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_is_sglangs(case: Case, ours: Answers, theirs: Answers) -> None:
    # In a stream, SGLang's server leaves out the log-probabilities of tokens without a text.
    answer, expected = ours[case.name], theirs[case.name.removesuffix("-stream")]
    assert expected.ok, expected.raw
    assert answer.ok, answer.raw
    for index in range(_num_choices(expected)):
        _assert_same_choice(answer.choice(index), expected.choice(index))
    _assert_same_usage(answer, theirs[case.name])


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case.name)
def test_a_call_has_the_tokens_of_sglangs_answer(
    case: Case, ours: Answers, theirs: Answers
) -> None:
    """What Dynamo reads as a call is the JSON that SGLang writes under the same constraint."""
    answer, expected = ours[case.name], theirs[case.name]
    assert answer.finish_reason == "tool_calls", answer.raw
    (call,) = answer.tool_calls
    assert expected.finish_reason == "stop"
    assert call.arguments in expected.text
    assert f'"{call.name}"' in expected.text or call.arguments == expected.text
    _assert_same_usage(answer, expected)


def test_the_table_shows_something(ours: Answers) -> None:
    """Requests whose answers have to be those of other requests, or have to differ from them."""
    plain = _logprobs(ours["plain"])
    for name in ("top-k", "top-p", "min-p", "seed", "ignore-eos"):
        assert _logprobs(ours[name]) == pytest.approx(plain, abs=TOLERANCE), name
    for name in ("temperature", "presence-penalty", "frequency-penalty", "repetition-penalty"):
        assert _logprobs(ours[name])[:16] != pytest.approx(plain, abs=TOLERANCE), name
    stopped = len(_logprobs(ours["stop-token-ids"]))
    assert stopped < len(_logprobs(ours["min-tokens"])) < len(plain)
    assert len(_logprobs(ours["no-max-tokens"])) > 128
    assert ours["same-salt"].cached_tokens > ours["other-salt"].cached_tokens == 0


def _ask(base_url: str, case: Case, body: dict[str, Any]) -> Answer:
    body = {key: value for key, value in body.items() if value is not None}
    return post(f"{base_url}/{case.path}", {"model": MODEL_NAME, **body})


def _num_choices(answer: Answer) -> int:
    return 1 + max(choice["index"] for part in answer.raw for choice in part.get("choices", []))


def _assert_same_choice(answer: Answer, expected: Answer) -> None:
    assert answer.finish_reason == expected.finish_reason
    assert _logprobs(answer) == pytest.approx(_logprobs(expected), abs=TOLERANCE)
    if token_ids := [entry["token_id"] for entry in answer.logprobs if "token_id" in entry]:
        assert token_ids == expected.token_ids
    for entry, other in zip(answer.logprobs, expected.logprobs, strict=True):
        _assert_same_alternatives(entry.get("top_logprobs", []), other.get("top_logprobs", []))
    if expected.text.isascii() and expected.text.isprintable():
        assert answer.text == expected.text


def _assert_same_alternatives(
    entries: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]
) -> None:
    if not expected:  # Dynamo then names the chosen token
        assert len(entries) <= 1
        return
    values, others = ([entry["logprob"] for entry in some] for some in (entries, expected))
    assert values == pytest.approx(others, abs=TOLERANCE)


def _assert_same_usage(answer: Answer, expected: Answer) -> None:
    if expected.usage is None:
        return
    assert answer.usage is not None
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer.usage[key] == expected.usage[key], key
    assert answer.cached_tokens == expected.cached_tokens


def _logprobs(answer: Answer) -> list[float]:
    return [entry["logprob"] for entry in answer.logprobs]
