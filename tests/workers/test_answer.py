# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/answer.py`: the rest of an answer, and what the client sees of its parts."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.sglang_mm_resume.workers.answer import Answer

PROMPT = [1, 2, 3]
MEDIA_TOKEN = 99


def an_answer(**fields: Any) -> Answer:
    return Answer({"token_ids": list(PROMPT), **fields}, {MEDIA_TOKEN})


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def test_the_first_part_is_the_request_itself() -> None:
    request = {"token_ids": PROMPT, "stop_conditions": {"max_tokens": 4}}
    answer = Answer(request, ())
    assert answer.next_part() is request
    chunk = {"token_ids": [7], "completion_usage": usage(30, 1, 0)}
    assert answer.add(chunk) is chunk


def test_each_part_continues_all_before_it() -> None:
    answer = an_answer(stop_conditions={"max_tokens": 9, "min_tokens": 3, "stop_token_ids": [5]})
    answer.next_part()
    answer.add({"token_ids": [10, 11]})
    assert answer.next_part()["token_ids"] == [*PROMPT, 10, 11]
    answer.add({"token_ids": [12]})
    answer.add({"token_ids": [13]})
    part = answer.next_part()
    assert part["token_ids"] == [*PROMPT, 10, 11, 12, 13]
    assert part["stop_conditions"] == {"max_tokens": 5, "min_tokens": 0, "stop_token_ids": [5]}


def test_without_a_limit_none_is_set() -> None:
    answer = an_answer(stop_conditions={"max_tokens": None})
    answer.next_part()
    answer.add({"token_ids": [10]})
    assert answer.next_part()["stop_conditions"] == {"max_tokens": None}


def test_the_client_sees_one_answer_to_its_own_prompt() -> None:
    answer = an_answer()
    answer.next_part()
    answer.add({"token_ids": [10, 11], "completion_usage": usage(30, 2, 0)})
    answer.next_part()
    chunk = answer.add({"token_ids": [12], "completion_usage": usage(32, 1, 31)})
    assert chunk["completion_usage"] == usage(30, 3, 30)


@pytest.mark.parametrize(
    ("fields", "hindrance"),
    [
        ({"sampling_options": {"n": 2}}, "n"),
        ({"sampling_options": {"guided_decoding": {"json": "{}"}}}, "guided decoding"),
        ({"sampling_options": {"presence_penalty": 0.1}}, "penalties"),
        ({"sampling_options": {"frequency_penalty": -0.1}}, "penalties"),
        ({"sampling_options": {"repetition_penalty": 1.1}}, "penalties"),
        ({"stop_conditions": {"max_thinking_tokens": 5}}, "a thinking budget"),
        ({"output_options": {"prompt_logprobs": 0}}, "prompt_logprobs"),
    ],
)
def test_what_only_the_first_engine_knows(fields: dict[str, Any], hindrance: str) -> None:
    answer = an_answer(**fields)
    answer.next_part()
    assert list(answer.hindrances()) == [], "nothing was answered: anybody may begin"
    answer.add({"token_ids": [10]})
    assert list(answer.hindrances()) == [hindrance]


def test_a_placeholder_in_the_answer_would_ask_for_media() -> None:
    answer = an_answer(
        sampling_options={
            "n": 1,
            "temperature": 0.5,
            "seed": 3,
            "guided_decoding": None,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
        },
        output_options={"logprobs": 2, "prompt_logprobs": None},
    )
    answer.next_part()
    answer.add({"token_ids": [10]})
    assert list(answer.hindrances()) == []
    answer.add({"token_ids": [MEDIA_TOKEN]})
    assert len(list(answer.hindrances())) == 1
