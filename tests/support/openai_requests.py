# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One request for each feature of the OpenAI API, in our words and in those of SGLang's server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.client import data_url
from tests.support.pictures import patchwork

Body = dict[str, Any]

QUESTION = "What is this?"
PICTURE = patchwork(700, 4, 4)
SECOND_PICTURE = patchwork(701, 7, 6)
# Of the greedy answer to PICTURE: a token in its middle, and how it is written.
STOP_TOKEN = 13
STOP_TEXT = "."

REGEX = "[a-c]{5}-[0-9]{3}"
CHOICES = ["a circle", "a square", "a star"]
LONG_REGEX = "(a1){150}"
"""More tokens than SGLang's server gives where none are asked for."""
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green", "blue"]},
        "round": {"type": "boolean"},
    },
    "required": ["colour", "round"],
    "additionalProperties": False,
}


def json_format(schema: Mapping[str, Any]) -> Body:
    """An answer that follows a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def tool(name: str, argument: str, values: list[str]) -> Body:
    """A function of one argument, which must be one of these."""
    parameters = {
        "type": "object",
        "properties": {argument: {"type": "string", "enum": values}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


PAINT = tool("paint", "colour", ["red", "green", "blue"])
COUNT = tool("count", "how", ["one", "two"])
COUNT_MUST_BE_CALLED = {"type": "function", "function": {"name": "count"}}


def call_schema(*tools: Body) -> Body:
    """What `tool_choice: required` becomes in Dynamo: a list of calls."""
    calls = [
        {
            "properties": {
                "name": {"type": "string", "enum": [tool["function"]["name"]]},
                "parameters": tool["function"]["parameters"],
            },
            "required": ["name", "parameters"],
        }
        for tool in tools
    ]
    return {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}


@dataclass(frozen=True)
class Case:
    """A request, and how it differs where SGLang has another name for something."""

    name: str
    ours: Body
    theirs: Body = field(default_factory=dict)
    path: str = "chat/completions"

    @property
    def for_sglang(self) -> Body:
        """The whole body for SGLang's server."""
        body = {**self.ours, **self.theirs, "return_token_ids": not self.stream}
        return {k: v for k, v in body.items() if v is not None and k not in ("nvext", *_GUIDED)}

    @property
    def stream(self) -> bool:
        """Whether the answer comes as a stream."""
        return bool(self.ours.get("stream"))


_GUIDED = ("guided_regex", "guided_choice", "guided_json", "guided_grammar")


def chat(*pictures: Any, question: str = QUESTION) -> list[Body]:
    """Messages that ask about pictures."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _case(name: str, theirs: Body | None = None, **ours: Any) -> Case:
    base = {"messages": chat(PICTURE), "max_tokens": 16, "temperature": 0, "logprobs": True}
    body = {**base, **ours}
    return Case(name, {k: v for k, v in body.items() if v is not None}, theirs or {})


def _both_ways(name: str, theirs: Body | None = None, **ours: Any) -> list[Case]:
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return [_case(name, theirs, **ours), _case(f"{name}-stream", theirs, **ours, **streamed)]


def _text(name: str, theirs: Body | None = None, **ours: Any) -> Case:
    base = {"prompt": QUESTION, "max_tokens": 16, "temperature": 0, "logprobs": 1}
    return Case(name, base | ours, theirs or {}, path="completions")


PRIMER = _case("primer")
"""Sent first, so that what is in the prefix cache is the same on both sides."""

CASES = [
    *_both_ways("plain"),
    _case("two-pictures", messages=chat(PICTURE, SECOND_PICTURE)),
    _case("text-only", messages=chat()),
    _case("system-prompt", messages=[{"role": "system", "content": "Be brief."}, *chat(PICTURE)]),
    # Sampling. What is drawn differs from run to run; these leave one token to draw.
    _case("top-k", temperature=1, top_k=1),
    _case("top-p", temperature=1, top_p=1e-6),
    *_both_ways("min-p", temperature=1, min_p=1.0),
    _case("seed", temperature=1, min_p=1.0, seed=7),
    _case("temperature", temperature=0.5, min_p=1.0),
    _case("presence-penalty", presence_penalty=1.5, max_tokens=48),
    _case("frequency-penalty", frequency_penalty=1.5, max_tokens=48),
    _case("repetition-penalty", repetition_penalty=1.8, max_tokens=48),
    # The third as well: SGLang applies them in an order that differs from process to process.
    _case("two-penalties", presence_penalty=1, frequency_penalty=1),
    *_both_ways("n", n=2, temperature=1, top_k=1),
    # Ends.
    *_both_ways("stop", stop=[STOP_TEXT]),
    _case("several-stops", stop=["never", STOP_TEXT]),
    _case(
        "stop-included",
        {"no_stop_trim": True},
        stop=[STOP_TEXT],
        include_stop_str_in_output=True,
    ),
    *_both_ways("stop-token-ids", stop_token_ids=[STOP_TOKEN]),
    _case("min-tokens", stop_token_ids=[STOP_TOKEN], min_tokens=10),
    _case("ignore-eos", ignore_eos=True),
    _case("max-completion-tokens", max_tokens=None, max_completion_tokens=5),
    _case("no-max-tokens", {"regex": LONG_REGEX}, max_tokens=None, guided_regex=LONG_REGEX),
    # Log-probabilities.
    *_both_ways("top-logprobs", top_logprobs=5),
    _case("no-logprobs", logprobs=False),
    # Guided decoding.
    *_both_ways("json-schema", max_tokens=64, response_format=json_format(SCHEMA)),
    _case("json-object", max_tokens=64, response_format={"type": "json_object"}),
    _case(
        "guided-json",
        {"response_format": json_format(SCHEMA)},
        max_tokens=64,
        guided_json=SCHEMA,
    ),
    *_both_ways("regex", {"regex": REGEX}, max_tokens=64, guided_regex=REGEX),
    _case("choice", {"regex": f"({'|'.join(CHOICES)})"}, max_tokens=64, guided_choice=CHOICES),
    _case(
        "grammar",
        {"ebnf": 'root ::= "red" | "blue"'},
        max_tokens=64,
        guided_grammar='root ::= "red" | "blue"',
    ),
    # Tools that are not called; calls have words of their own on each side (see CALLS).
    _case("tools-auto", tools=[PAINT, COUNT], tool_choice="auto"),
    _case("tools-none", tools=[PAINT, COUNT], tool_choice="none"),
    # Hints, and the prefix cache.
    _case("priority", {"priority": 3}, nvext={"agent_hints": {"priority": 3}}),
    _case("first-salt", {"cache_salt": "one"}, nvext={"cache_salt": "one"}),
    _case("same-salt", {"cache_salt": "one"}, nvext={"cache_salt": "one"}),
    _case("other-salt", {"cache_salt": "two"}, nvext={"cache_salt": "two"}),
    # Text completions.
    _text("completion"),
    _text("completion-stream", stream=True, stream_options={"include_usage": True}),
    _text("completion-n", n=2, temperature=1, top_k=1),
    _text("completion-logprobs", logprobs=3),
    _text("completion-token-ids", prompt=[10, 20, 30]),
    _text("completion-several-prompts", prompt=["What is", "How many"]),
    _text("completion-stop", stop=["rou"]),
    _text("completion-regex", {"regex": REGEX}, max_tokens=64, guided_regex=REGEX),
]

CALLS = [
    *_both_ways(
        "tool-required",
        {
            "response_format": json_format(call_schema(PAINT, COUNT)),
            "tools": None,
            "tool_choice": None,
        },
        max_tokens=128,
        tools=[PAINT, COUNT],
        tool_choice="required",
    ),
    *_both_ways(
        "tool-named",
        {
            "response_format": json_format(COUNT["function"]["parameters"]),
            "tools": None,
            "tool_choice": None,
        },
        max_tokens=128,
        tools=[PAINT, COUNT],
        tool_choice=COUNT_MUST_BE_CALLED,
    ),
]
"""SGLang is given the schema of the calls for its whole answer, which then is the calls."""
