# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which constraints of an answer are refused, and that those that people write are not."""

from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import Refused
from dynamo.sglang_mm_resume.workers.grammars import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_REPETITIONS,
    MAX_WAYS,
    require_bounded,
    ways_of,
)
from tests.fuzzing.grammars import nested, strings

#: Expressions for which xgrammar took more than 5 s for a few hundred tokens.
STALLS = [
    *("(.{1,30}){1,30}", "(.{1,1000}){1,1000}", "(.?){1,1000}", "(.+){1,1000}", "(.+){2,100}"),
    *("((.+)+)+", "((.*)*)*", "(((((.*)*)*)*)*)*", "(?:(?:.+)+)+"),
]
#: What people write, with the longest time that a token took in ms.
WRITTEN = [
    *("[a-c]{5}-[0-9]{3}", r"\d{1,3}(\.\d{1,3}){3}", "(a1){150}", "([a-z]+ )*[a-z]+"),
    *(r"(\w+\s*)+", "([a-z]{1,20} ){1,100}", r"([^.]+\. ){1,5}", "(([a-z]+ )+\\n)+"),
    *(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", ".{1,100000}"),
    *("(red|green|blue)(, (red|green|blue))*", "(.*a){20}", "(.*,)*", "(.+)+", "a?b?c?" * 30),
    *(r"\(\d+\)", "[()]+[|*]", "[]a]+", "[^]a]{2}", "(?P<name>[a-z]+)=(?P<value>.*)", "(", ")*"),
]


def _request(**guided: Any) -> dict[str, Any]:
    return {"token_ids": [1], "sampling_options": {"guided_decoding": guided}}


@pytest.mark.parametrize("expression", STALLS)
def test_what_stalls_an_engine_is_refused(expression: str) -> None:
    with pytest.raises(Refused, match=f"at most {MAX_WAYS} ways"):
        require_bounded(_request(regex=expression))


@pytest.mark.parametrize("expression", WRITTEN)
def test_what_people_write_is_not(expression: str) -> None:
    require_bounded(_request(regex=expression))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(.{1,100}){1,100}"},
        {"type": "array", "items": {"anyOf": [{"pattern": "((.*)*)*"}]}},
        {"patternProperties": {"((.*)*)*": {}}},
    ],
)
@pytest.mark.parametrize("kind", ["json", "structural_tag"])
def test_expressions_within_a_schema_count_too(kind: str, schema: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"by {kind}.*at most {MAX_WAYS} ways"):
        require_bounded(_request(**{kind: schema}))


@pytest.mark.parametrize("keyword", ["items", "properties"])
def test_depth_is_bounded(keyword: str) -> None:
    require_bounded(_request(json=nested(MAX_DEPTH // 2 - 1, keyword)))
    with pytest.raises(Refused, match=f"at most {MAX_DEPTH} levels"):
        require_bounded(_request(json=nested(MAX_DEPTH, keyword)))


@pytest.mark.parametrize(
    "guided",
    [
        {"json": {"enum": strings(10_000)}},
        {"choice": strings(10_000)},
        {"regex": "ab" * MAX_CHARACTERS},
        {"grammar": "root ::= " + '"a" ' * MAX_CHARACTERS},
    ],
    ids=lambda guided: next(iter(guided)),
)
def test_length_is_bounded(guided: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"at most {MAX_CHARACTERS} characters"):
        require_bounded(_request(**guided))


@pytest.mark.parametrize("request_", [{}, {"sampling_options": None}, _request()])
def test_most_requests_have_none(request_: dict[str, Any]) -> None:
    require_bounded(request_)


def test_repetitions_in_a_row_are_bounded() -> None:
    def asked(count: int) -> dict[str, Any]:
        return {"sampling_options": {"guided_decoding": {"regex": "a?" * count}}}

    require_bounded(asked(MAX_REPETITIONS))
    with pytest.raises(Refused, match=f"at most {MAX_REPETITIONS} of them"):
        require_bounded(asked(MAX_REPETITIONS + 1))


def test_nesting_of_an_expression_costs_no_stack() -> None:
    assert ways_of("(" * 30_000 + "a" + ")" * 30_000) == 1
