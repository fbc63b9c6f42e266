# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which numbers of a request reach an engine: each at its edges, and beyond them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.workers.numbers import (
    MAX_CHOICES,
    MAX_INT32,
    MAX_INT64,
    Numbers,
    vocabulary_in,
)

VOCABULARY = 512
NUMBERS = Numbers(VOCABULARY)
NAN, INFINITY = math.nan, math.inf
TINY = 1e-45

MODEL = Path(__file__).parents[2] / "examples" / "demo_model" / "weights"


def a_request(section: str, **fields: Any) -> dict[str, Any]:
    return {"token_ids": [1, 2], section: fields}


def refusal_of(request: dict[str, Any]) -> str:
    with pytest.raises(Refused) as refused:
        NUMBERS.require_possible(request)
    assert refused.value.reason is Reason.BAD_REQUEST
    return refused.value.message


#: Section, field, values at its edges, values beyond them.
EDGES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("stop_conditions", "max_tokens", [0, 1, MAX_INT32], [-1, MAX_INT32 + 1, 1.5, True, "1"]),
    ("stop_conditions", "min_tokens", [0, 1, MAX_INT32], [-1, MAX_INT32 + 1, 1.5]),
    ("stop_conditions", "max_thinking_tokens", [0, MAX_INT32], [-1, MAX_INT32 + 1]),
    ("sampling_options", "n", [1, MAX_CHOICES], [0, -1, MAX_CHOICES + 1, 2**70]),
    (
        "sampling_options",
        "seed",
        [-MAX_INT64 - 1, 0, MAX_INT64],
        [-MAX_INT64 - 2, MAX_INT64 + 1, 0.5],
    ),
    ("sampling_options", "temperature", [0, TINY, 0.5, 2], [-TINY, 2.01, NAN, INFINITY]),
    ("sampling_options", "top_p", [TINY, 1], [0, 0.0, -TINY, 1.01, NAN]),
    ("sampling_options", "top_k", [-1, 1, MAX_INT32], [-2, MAX_INT32 + 1]),
    ("sampling_options", "min_p", [0, 1], [-TINY, 1.01, NAN]),
    ("sampling_options", "presence_penalty", [-2, 0, 2], [-2.01, 2.01, NAN, INFINITY]),
    ("sampling_options", "frequency_penalty", [-2, 0, 2], [-2.01, 2.01, NAN, -INFINITY]),
    ("sampling_options", "repetition_penalty", [0.01, 1, 2], [0, TINY, 0.009, 2.01, NAN]),
    ("output_options", "logprobs", [0, VOCABULARY], [-1, VOCABULARY + 1, 2**40]),
    ("output_options", "prompt_logprobs", [0, VOCABULARY], [-1, VOCABULARY + 1]),
    ("routing", "priority", [-MAX_INT32 - 1, 0, MAX_INT32], [-MAX_INT32 - 2, MAX_INT32 + 1]),
    ("routing", "dp_rank", [0, MAX_INT32], [-1, MAX_INT32 + 1]),
]


def cases(which: int) -> list[Any]:
    return [
        pytest.param(row[0], row[1], value, id=f"{row[1]}={value}")
        for row in EDGES
        for value in row[which]
    ]


@pytest.mark.parametrize(("section", "name", "value"), cases(2))
def test_an_edge_is_possible(section: str, name: str, value: Any) -> None:
    NUMBERS.require_possible(a_request(section, **{name: value}))


@pytest.mark.parametrize(("section", "name", "value"), cases(3))
def test_beyond_an_edge_is_refused_by_the_name_of_the_field(
    section: str, name: str, value: Any
) -> None:
    message = refusal_of(a_request(section, **{name: value}))
    assert message.startswith(f"{name}: {value!r:.40} is not possible: send ")


def test_a_refusal_says_what_is_allowed() -> None:
    top_k = refusal_of(a_request("sampling_options", top_k=2**31))
    assert top_k.endswith("send a whole number from -1 to 2147483647")
    top_p = refusal_of(a_request("sampling_options", top_p=0))
    assert top_p.endswith("send a number more than 0 and at most 1")


@pytest.mark.parametrize("name", ["stop_token_ids", "stop_token_ids_hidden"])
@pytest.mark.parametrize("token_id", [-1, VOCABULARY, 600, 999_999_999, 2**31, 2**70])
def test_a_stop_token_is_one_of_the_vocabulary(name: str, token_id: int) -> None:
    message = refusal_of(a_request("stop_conditions", **{name: [5, token_id, 7]}))
    assert message == (
        f"stop_token_ids: {token_id} is not a token of this model: send ids from 0 to 511, "
        "its vocabulary has 512"
    )


@pytest.mark.parametrize("token_ids", [[-1], [5, 512], [600, 7], [2**70], ["5"], [1.5]])
def test_a_token_of_the_prompt_is_one_of_the_vocabulary(token_ids: list[Any]) -> None:
    assert "is not a token of this model" in refusal_of({"token_ids": token_ids})


def test_every_token_of_the_vocabulary_is_possible() -> None:
    tokens = list(range(VOCABULARY))
    NUMBERS.require_possible({"token_ids": tokens, "stop_conditions": {"stop_token_ids": tokens}})


def test_an_empty_prompt_is_refused() -> None:
    assert refusal_of({"token_ids": []}).startswith("prompt: it has no tokens")


def test_fewer_tokens_at_most_than_at_least() -> None:
    NUMBERS.require_possible(a_request("stop_conditions", min_tokens=4, max_tokens=4))
    message = refusal_of(a_request("stop_conditions", min_tokens=5, max_tokens=4))
    assert message == "min_tokens: 5 is more than max_tokens, which is 4"


def test_no_rank_of_a_prefill_worker_that_is_not_chosen_yet() -> None:
    """A decode engine would look for KV there, in vain."""
    message = refusal_of(a_request("routing", prefill_dp_rank=0))
    assert message.startswith("prefill_dp_rank: 0 is not possible")


@pytest.mark.parametrize("nothing", [{}, {"sampling_options": None, "routing": None}])
def test_what_is_not_given_is_possible(nothing: dict[str, Any]) -> None:
    NUMBERS.require_possible({"token_ids": [0], **nothing})


# --- The vocabulary ---


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": {"vocab_size": 7}},
        {"vocab_size": 7},
        {"vocab_size": 9, "text_config": {"vocab_size": 7}},
        {"vocab_size": 7, "text_config": {}},
    ],
)
def test_the_vocabulary_of_a_config(config: dict[str, Any]) -> None:
    assert vocabulary_in(config, "model") == 7


@pytest.mark.parametrize("size", [None, 0, -5, "512", True, 1.5])
def test_a_model_without_one_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"^--model-path: a/model names no vocab_size"):
        vocabulary_in({"vocab_size": size}, "a/model")


@pytest.mark.parametrize("flat", [False, True], ids=["text_config", "flat"])
def test_it_is_the_one_by_which_sglang_makes_its_tensors(flat: bool, tmp_path: Path) -> None:
    from sglang.srt.configs.model_config import ModelConfig

    config = json.loads((MODEL / "config.json").read_text())
    if flat:  # as older checkpoints have it
        config |= config.pop("text_config") | {"model_type": config["model_type"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ModelConfig(str(tmp_path)).vocab_size == vocabulary_in(config, "model")
