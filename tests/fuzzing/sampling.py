# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Fields that say how to sample and when to stop, with values inside, at and beyond their edges."""

from __future__ import annotations

import random
from typing import Any

Body = dict[str, Any]

VOCABULARY = 512
"""Of the test models: ids at and beyond it are what engines must never index with."""

_EDGES = [0, -0.0, 1e-45, 1e-30, 1e-7, 1e-5, 0.5, 1, 2, 2.0001, -1e-7, -1, -2, -2.0001]
_EDGES += [100, 1e38, 3.5e38, 1e300, -1e300]
_COUNTS = [0, 1, 2, 5, 16, 17, 128, 2047, 2048, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, -1, -(2**31)]
_BEYOND = [VOCABULARY, VOCABULARY + 1, 600, 65_535, 151_643, 999_999_999, 2**31 - 1]
"""Ids that Dynamo passes on: whole numbers below `2**32`."""
_NO_IDS = [2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -1, -512, -(2**31)]
TOKEN_IDS = [0, 1, 2, 3, 13, 100, VOCABULARY - 1, *_BEYOND, *_NO_IDS]
_STOPS = ["", ".", "a", "\0", "\ud800", "e" * 10_000, "\n\n", "<|im_end|>", "🙂", " " * 500]
_WRONG_TYPES = [None, True, "1", [], {}, [1], "NaN", "x" * 10_000]


def token_ids(chance: random.Random, at_most: int = 8) -> list[int]:
    """Some, possibly none; now and then thousands. One that is no id has the whole list refused,
    so that most lists have none.
    """
    count = 5_000 if chance.random() < 0.02 else chance.randrange(at_most + 1)
    odd = chance.choices([[], _BEYOND, TOKEN_IDS], [5, 4, 1])[0]
    return [
        chance.choice(odd) if odd and chance.random() < 0.3 else chance.randrange(VOCABULARY)
        for _ in range(count)
    ]


def _number(chance: random.Random) -> float:
    return chance.choice(_EDGES) if chance.random() < 0.5 else round(chance.uniform(0, 2), 3)


def _biases(chance: random.Random) -> dict[str, float]:
    return {str(i): chance.choice([-100, 100, 0, 1, -1e38, 1e300]) for i in token_ids(chance)}


def _stop(chance: random.Random) -> Any:
    stops = [chance.choice(_STOPS) for _ in range(chance.choice([0, 1, 2, 4, 5, 40]))]
    return chance.choice([stops, chance.choice(_STOPS)])


def _choice_of(values: list[Any]) -> Any:
    return lambda chance: chance.choice(values)


#: Field to a maker of its value.
FIELDS = {
    "temperature": _number,
    "top_p": _number,
    "min_p": _number,
    "top_k": _choice_of([*_COUNTS, 3]),
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "repetition_penalty": _number,
    "length_penalty": _number,
    "seed": _choice_of([0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63)]),
    "n": _choice_of([1, 2, 2, 3, 8, 0, -1, 127, 128, 129, 2**31]),
    "best_of": _choice_of([1, 2, 0, 21, -1]),
    "min_tokens": _choice_of([1, 2, 2, 3, 8, 8, *_COUNTS]),
    "stop_token_ids": token_ids,
    "stop": _stop,
    "logit_bias": _biases,
    "ignore_eos": _choice_of([True, False]),
    "logprobs": _choice_of([True, True, False, 0, 1, 5, 6, 600]),
    "top_logprobs": _choice_of([0, 1, 5, 20, 21, 511, 512, 513, 2**31]),
    "prompt_logprobs": _choice_of([0, 1, 5, 600]),
    "echo": _choice_of([True, False]),
    "skip_special_tokens": _choice_of([True, False]),
    "include_stop_str_in_output": _choice_of([True, False]),
    "return_tokens_as_token_ids": _choice_of([True, False]),
    "suffix": _choice_of(["", "end", "x" * 100_000]),
    "user": _choice_of(["", "someone", "x" * 100_000]),
    "priority": _choice_of(_COUNTS),
    "cache_salt": _choice_of(["", "salt", "x" * 100_000]),
}


def length(chance: random.Random) -> Body:
    """How long the answer may be: short as a rule, as time is short too."""
    field = chance.choice(["max_tokens", "max_tokens", "max_completion_tokens"])
    usual = chance.choice([1, 4, 8, 16, 32])
    return {field: chance.choice(_COUNTS) if chance.random() < 0.1 else usual}


def sampling(chance: random.Random) -> Body:
    """A few of the fields, or many; one of them may be of a wrong type."""
    names = chance.sample(sorted(FIELDS), chance.choice([0, 1, 2, 2, 3, 3, 4, 8]))
    body = {name: FIELDS[name](chance) for name in names}
    if names and chance.random() < 0.05:
        body[chance.choice(names)] = chance.choice(_WRONG_TYPES)
    return body


def floor_and_ends(chance: random.Random) -> Body:
    """A least length together with tokens that end an answer: engines mask the latter."""
    return {"min_tokens": chance.choice([1, 2, 4]), "stop_token_ids": token_ids(chance, 4) or [0]}


def drawn_with(chance: random.Random) -> Body:
    """Sampling that is not greedy, with one of the numbers that divide or multiply at an edge."""
    name = chance.choice(["temperature", "top_p", "min_p", "repetition_penalty"])
    return {"temperature": 1.0, name: chance.choice(_EDGES)}
