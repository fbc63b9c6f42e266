# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a script reads from a report, and what a person does."""

import json

import pytest

from dynamo.sglang_mm_resume.doctor.report import (
    Outcome,
    Report,
    Result,
    Section,
    fail,
    ok,
    skip,
    warn,
)

OK, SKIP = ok("a", "fine"), skip("b", "not here")
WARN, FAIL = warn("c", "slow", "hurry"), fail("d", "broken", "mend it", count=2)


def report(*results: Result) -> Report:
    return Report([Section("First", results[:1]), Section("Second", results[1:])])


@pytest.mark.parametrize(
    ("results", "exit_code"),
    [
        ((), 0),
        ((OK, SKIP), 0),
        ((SKIP,), 0),
        ((WARN, OK), 1),
        ((OK, FAIL, WARN), 2),
    ],
)
def test_the_gravest_result_is_the_exit_code(results: tuple[Result, ...], exit_code: int) -> None:
    assert report(*results).exit_code == exit_code


@pytest.mark.parametrize("outcome", [Outcome.WARN, Outcome.FAIL])
def test_what_is_wrong_says_what_to_do(outcome: Outcome) -> None:
    with pytest.raises(ValueError, match="what to do"):
        Result("x", outcome, "broken")


def test_json_has_every_check_and_what_to_do() -> None:
    found = json.loads(report(OK, SKIP, WARN, FAIL).as_json())
    assert (found["version"], found["outcome"], found["exit_code"]) == (1, "fail", 2)
    assert [check["section"] for check in found["checks"]] == ["First", *["Second"] * 3]
    assert found["checks"][-1] == {
        "section": "Second",
        "name": "d",
        "outcome": "fail",
        "text": "broken",
        "action": "mend it",
        "figures": {"count": 2},
    }


def test_json_calls_well_what_a_script_may_ignore() -> None:
    assert json.loads(report(OK, SKIP).as_json())["outcome"] == "ok"


def test_text_has_a_line_per_check_and_counts_them() -> None:
    lines = report(OK, SKIP, WARN, FAIL).as_text().splitlines()
    assert lines[0] == "First"
    assert lines[1].split() == ["ok", "a", "fine"]
    assert lines[lines.index("Second") + 1].split() == ["skip", "b", "not", "here"]
    assert [line.strip() for line in lines if "->" in line] == ["-> hurry", "-> mend it"]
    assert lines[-1] == "4 checks: 1 ok, 1 skip, 1 warn, 1 fail"


def test_long_texts_are_wrapped() -> None:
    long = warn("name", "word " * 60, "do this " * 40)
    lines = report(long).as_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()).count("word") == 60
