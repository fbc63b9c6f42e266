# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the OpenAI API lets a client ask for works for a request with a picture.

Here against transformers and against what the feature promises; test_same_as_sglang.py compares
every value with SGLang's own server. The model has random weights: guided decoding makes it say
something sensible.
"""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, post
from tests.support.deployments import MODEL_NAME, SMALL_POOL
from tests.support.exact import LOGPROB_TOLERANCE, assert_exact
from tests.support.openai_requests import (
    CHOICES,
    COUNT,
    COUNT_MUST_BE_CALLED,
    LONG_REGEX,
    PAINT,
    QUESTION,
    REGEX,
    SCHEMA,
    json_format,
)
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import num_tokens, patchwork

DEPLOYMENT = SMALL_POOL

MAX_TOKENS = 16
PICTURE = patchwork(700, 7, 6)
SAMPLED = {"temperature": 1.0}
SESSION = {"x-dynamo-session-id": "session-1", "x-dynamo-parent-session-id": "session-0"}

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.fixture(scope="module")
def greedy(oracle: Oracle) -> OracleAnswer:
    """The most likely answer."""
    return oracle.generate([PICTURE], QUESTION, MAX_TOKENS)


# --- Sampling ---


@both_ways
@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda option: next(iter(option))
)
def test_sampling_that_leaves_one_token_to_choose(
    stack: LocalStack, greedy: OracleAnswer, narrow: dict[str, float], stream: bool
) -> None:
    assert_exact(_ask(stack, stream=stream, **SAMPLED, **narrow), greedy)


def test_sampling_draws(stack: LocalStack, greedy: OracleAnswer) -> None:
    """With nothing that narrows them, sixteen tokens of a random model are not the likeliest."""
    answer = _ask(stack, **SAMPLED, seed=1)
    assert answer.ok
    assert len(answer.token_ids) == MAX_TOKENS
    assert answer.token_ids != greedy.token_ids


def test_a_temperature_sharpens(stack: LocalStack) -> None:
    warm, cold = (_ask(stack, temperature=t, min_p=1.0, top_logprobs=5) for t in (1.0, 0.5))
    assert warm.token_ids == cold.token_ids
    for entry, sharp in zip(warm.logprobs, cold.logprobs, strict=True):
        assert _spread(sharp) == pytest.approx(2 * _spread(entry), abs=LOGPROB_TOLERANCE)


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 2.0}],
    ids=lambda option: next(iter(option)),
)
def test_a_penalty_prevents_repetition(stack: LocalStack, penalty: dict[str, float]) -> None:
    plain, penalised = (_ask(stack, max_tokens=48, **extra) for extra in ({}, penalty))
    assert plain.token_ids[0] == penalised.token_ids[0]
    assert len(set(plain.token_ids)) < len(set(penalised.token_ids))


@both_ways
def test_several_choices(stack: LocalStack, greedy: OracleAnswer, stream: bool) -> None:
    # Dynamo tells no token ids of several choices.
    answer = _ask(stack, stream=stream, n=2, top_k=1, nvext={}, **SAMPLED)
    for choice in (answer, answer.choice(1)):
        assert choice.finish_reason == "length"
        assert [entry["token_id"] for entry in choice.logprobs] == greedy.token_ids
    assert answer.usage is not None
    assert answer.usage["completion_tokens"] == 2 * MAX_TOKENS


# --- Ends ---


@both_ways
@pytest.mark.parametrize("by", ["stop", "stop_token_ids"])
def test_an_answer_stops_where_the_client_says(
    stack: LocalStack, oracle: Oracle, greedy: OracleAnswer, by: str, stream: bool
) -> None:
    position = _position_of_text(oracle, greedy)
    token_id = greedy.token_ids[position]
    end: list[Any] = [oracle.text_of(token_id)] if by == "stop" else [token_id]
    answer = _ask(stack, stream=stream, **{by: end})
    assert answer.finish_reason == "stop"
    assert len(answer.logprobs) == position + 1
    assert answer.text == oracle.text_of(*greedy.token_ids[:position])


def test_without_a_limit_an_answer_goes_on_until_its_end(stack: LocalStack) -> None:
    """SGLang's engine has a limit of its own, of 128 tokens, for who names none."""
    answer = _ask(stack, max_tokens=None, guided_regex=LONG_REGEX)
    assert answer.finish_reason == "stop"
    assert answer.text == "a1" * 150
    assert len(answer.token_ids) > 128


def test_a_minimum_of_tokens(stack: LocalStack, greedy: OracleAnswer) -> None:
    stop = greedy.token_ids[2]
    short, long = (_ask(stack, stop_token_ids=[stop], **e) for e in ({}, {"min_tokens": 10}))
    assert len(short.logprobs) == greedy.token_ids.index(stop) + 1
    assert len(long.logprobs) >= 10


# --- Log-probabilities and usage ---


@both_ways
def test_top_logprobs(stack: LocalStack, greedy: OracleAnswer, stream: bool) -> None:
    answer = _ask(stack, stream=stream, top_logprobs=5)
    assert_exact(answer, greedy)
    for entry in answer.logprobs:
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert len(values) == 5
        assert values[0] == pytest.approx(entry["logprob"])


@both_ways
def test_usage_counts_the_pictures_tokens(
    stack: LocalStack, greedy: OracleAnswer, stream: bool
) -> None:
    salt = {"cache_salt": uuid4().hex}  # others know nothing of this prompt
    answers = [_ask(stack, stream=stream, nvext=salt) for _ in range(2)]
    for answer in answers:
        assert answer.usage is not None
        assert answer.usage["prompt_tokens"] == greedy.prompt_tokens > num_tokens(PICTURE)
        assert answer.usage["completion_tokens"] == MAX_TOKENS
        assert answer.usage["total_tokens"] == greedy.prompt_tokens + MAX_TOKENS
    assert [answer.cached_tokens for answer in answers] == [0, greedy.prompt_tokens - 1]


# --- Guided decoding ---


@both_ways
def test_json_of_a_schema(stack: LocalStack, stream: bool) -> None:
    answer = _ask(stack, stream=stream, max_tokens=64, response_format=json_format(SCHEMA))
    found = json.loads(answer.text)
    assert answer.finish_reason == "stop"
    assert found.keys() == {"colour", "round"}
    assert found["colour"] in SCHEMA["properties"]["colour"]["enum"]
    assert isinstance(found["round"], bool)


def test_any_json(stack: LocalStack, greedy: OracleAnswer) -> None:
    """Nothing bounds it, so that a random model does not come to its end."""
    answer = _ask(stack, response_format={"type": "json_object"})
    assert answer.text.startswith("{")
    assert answer.token_ids != greedy.token_ids


@both_ways
def test_a_regex(stack: LocalStack, stream: bool) -> None:
    answer = _ask(stack, stream=stream, max_tokens=64, guided_regex=REGEX)
    assert re.fullmatch(REGEX, answer.text)


def test_a_choice(stack: LocalStack) -> None:
    assert _ask(stack, max_tokens=64, guided_choice=CHOICES).text in CHOICES
    assert _ask(stack, max_tokens=64, guided_choice=CHOICES[:1]).text == CHOICES[0]


def test_a_grammar(stack: LocalStack) -> None:
    grammar = 'root ::= "light " ("red" | "blue")'
    answer = _ask(stack, max_tokens=64, guided_grammar=grammar)
    assert answer.text in ("light red", "light blue")


def test_a_regex_that_is_none_is_the_clients_error(stack: LocalStack) -> None:
    answer = _ask(stack, guided_regex="(")
    assert answer.status == 400
    assert "regex" in answer.error_message


# --- Tools ---


@both_ways
def test_a_tool_must_be_called(stack: LocalStack, stream: bool) -> None:
    answer = _ask_tools(stack, "required", stream)
    assert answer.finish_reason == "tool_calls"
    assert answer.text == ""
    (call,) = answer.tool_calls
    assert json.loads(call.arguments) in _arguments({"paint": PAINT, "count": COUNT}[call.name])


@both_ways
def test_one_tool_must_be_called(stack: LocalStack, stream: bool) -> None:
    answer = _ask_tools(stack, COUNT_MUST_BE_CALLED, stream)
    (call,) = answer.tool_calls
    assert (answer.finish_reason, call.name) == ("tool_calls", "count")
    assert json.loads(call.arguments) in _arguments(COUNT)


@both_ways
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_model_that_calls_no_tool_answers(
    stack: LocalStack, greedy: OracleAnswer, choice: str, stream: bool
) -> None:
    answer = _ask_tools(stack, choice, stream, max_tokens=MAX_TOKENS)
    assert_exact(answer, greedy)
    assert answer.tool_calls == []


@both_ways
def test_a_model_may_call_a_tool(stack: LocalStack, stream: bool) -> None:
    """A random model has no such will of its own: its words are laid into its mouth."""
    call = {"name": "paint", "arguments": _arguments(PAINT)[0]}
    said = re.escape(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
    tools = {"tools": [PAINT, COUNT], "tool_choice": "auto"}
    answer = _ask(stack, 128, stream=stream, guided_regex=said, **tools)
    (seen,) = answer.tool_calls
    assert (answer.finish_reason, answer.text, seen.name) == ("tool_calls", "", "paint")
    assert json.loads(seen.arguments) == call["arguments"]


# --- Reasoning ---


@both_ways
def test_thoughts_are_told_apart(stack: LocalStack, stream: bool) -> None:
    said = "Here is my thought process: red or blue. Here is my response: blue"
    answer = _ask(stack, 128, stream=stream, guided_regex=said.replace(".", r"\."))
    assert (answer.reasoning.strip(), answer.text.strip()) == ("red or blue.", "blue")


# --- Hints, and Dynamo's own fields ---


def test_hints_change_no_answer(stack: LocalStack, greedy: OracleAnswer) -> None:
    nvext = {"agent_hints": {"priority": 5, "osl": 16}, "extra_fields": ["completion_token_ids"]}
    assert_exact(_ask(stack, headers=SESSION, nvext=nvext), greedy)


def test_a_salt_keeps_prompts_apart(stack: LocalStack) -> None:
    one, other = uuid4().hex, uuid4().hex
    first, second, third = (_ask(stack, nvext={"cache_salt": s}) for s in (one, one, other))
    assert first.cached_tokens == third.cached_tokens == 0
    assert second.cached_tokens > num_tokens(PICTURE)


@both_ways
def test_fields_that_a_client_may_ask_for(
    stack: LocalStack, greedy: OracleAnswer, stream: bool
) -> None:
    fields = ["engine_data", "worker_id", "timing", "stop_reason", "completion_token_ids"]
    stop = greedy.token_ids[4]
    extra = {"extra_fields": fields}
    answer = _ask(stack, stream=stream, stop_token_ids=[stop], nvext=extra)
    found: dict[str, Any] = {}
    for part in answer.raw:
        found |= part.get("nvext") or {}
    assert found.keys() >= set(fields)
    assert found["stop_reason"] == stop
    assert found["engine_data"]["mm_resume"]["image_tokens"] == num_tokens(PICTURE)
    assert found["engine_data"]["kv_cache_hit"]["prompt_tokens"] == greedy.prompt_tokens
    assert found["timing"]["ttft_ms"] > 0


# --- Text completions ---


@both_ways
def test_a_text_completion(stack: LocalStack, oracle: Oracle, stream: bool) -> None:
    expected = oracle.generate([], QUESTION, MAX_TOKENS)
    body = {
        "model": MODEL_NAME,
        "prompt": f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "logprobs": 1,
        "stream": stream,
        "nvext": {"extra_fields": ["completion_token_ids"]},
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    assert_exact(post(f"{stack.base_url}/completions", body), expected)


def _ask(
    stack: LocalStack,
    max_tokens: int | None = MAX_TOKENS,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Answer:
    extra = {"logprobs": True, **extra}
    urls = [data_url(PICTURE)]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, max_tokens, headers=headers, **extra)


def _ask_tools(stack: LocalStack, choice: Any, stream: bool, max_tokens: int = 128) -> Answer:
    return _ask(stack, max_tokens, stream=stream, tools=[PAINT, COUNT], tool_choice=choice)


def _arguments(tool: dict[str, Any]) -> list[dict[str, str]]:
    """All that the tool may be called with."""
    ((name, values),) = tool["function"]["parameters"]["properties"].items()
    return [{name: value} for value in values["enum"]]


def _spread(entry: dict[str, Any]) -> float:
    """Between the likeliest tokens."""
    values = [other["logprob"] for other in entry["top_logprobs"]]
    return float(values[0] - values[-1])


def _position_of_text(oracle: Oracle, answer: OracleAnswer) -> int:
    """Of a token that is whole characters, and comes after some others and not before."""
    ids = answer.token_ids
    return next(
        i
        for i in range(3, len(ids))
        if oracle.text_of(ids[i]).strip().isalpha() and ids[i] not in ids[:i]
    )
