# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the numbers of a request may be.

The scheduler of an engine serves all clients with the same tensors. A number that it cannot index
with, or cannot store, raises in the middle of everybody's step and ends the engine. SGLang checks
some numbers of a request before its scheduler sees them. This table has all of them, once, where a
request enters, by the names that clients know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dynamo.sglang_mm_resume.core.errors import Reason, Refused

Request = Mapping[str, Any]

#: The largest number of the 32-bit tensors that engines make of counts.
MAX_INT32: Final = 2**31 - 1
MAX_INT64: Final = 2**63 - 1
MAX_CHOICES: Final = 128
#: Logits divided by less, and then by the smallest temperature, are infinite: nothing is left to
#: choose from.
MIN_REPETITION_PENALTY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one number: where a request has it, and the least and largest value, both allowed."""

    section: str
    name: str
    low: float
    high: float
    whole: bool = True
    over_low: bool = False
    """Whether `low` itself is too little."""

    def require(self, value: Any) -> None:
        """Raises `Refused`, with what is allowed."""
        is_number = isinstance(value, int if self.whole else int | float)
        if not is_number or isinstance(value, bool) or not self._contains(value):
            raise _refused(f"{self.name}: {value!r:.40} is not possible: send {self}")

    def _contains(self, value: float) -> bool:
        if self.over_low and value == self.low:
            return False
        return self.low <= value <= self.high  # NaN is not

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"more than {self.low} and at most" if self.over_low else f"from {self.low} to"
        return f"{kind} {low} {self.high}"


def _table(vocabulary: int) -> tuple[Bounds, ...]:
    """Of every number that an engine gets."""
    stop, sampling = "stop_conditions", "sampling_options"
    return (
        Bounds(stop, "max_tokens", 0, MAX_INT32),
        Bounds(stop, "min_tokens", 0, MAX_INT32),
        Bounds(stop, "max_thinking_tokens", 0, MAX_INT32),
        Bounds(sampling, "n", 1, MAX_CHOICES),
        Bounds(sampling, "seed", -MAX_INT64 - 1, MAX_INT64),
        Bounds(sampling, "temperature", 0, 2, whole=False),
        Bounds(sampling, "top_p", 0, 1, whole=False, over_low=True),
        Bounds(sampling, "top_k", -1, MAX_INT32),
        Bounds(sampling, "min_p", 0, 1, whole=False),
        Bounds(sampling, "presence_penalty", -2, 2, whole=False),
        Bounds(sampling, "frequency_penalty", -2, 2, whole=False),
        Bounds(sampling, "repetition_penalty", MIN_REPETITION_PENALTY, 2, whole=False),
        Bounds("output_options", "logprobs", 0, vocabulary),
        Bounds("output_options", "prompt_logprobs", 0, vocabulary),
        Bounds("routing", "priority", -MAX_INT32 - 1, MAX_INT32),
        Bounds("routing", "dp_rank", 0, MAX_INT32),
    )


class Numbers:
    """Checks requests for engines of one model."""

    def __init__(self, vocabulary: int) -> None:
        """`vocabulary`: width of the engine's logits in tokens."""
        self._vocabulary = vocabulary
        self._table = _table(vocabulary)

    def require_possible(self, request: Request) -> None:
        """Raises `Refused` for a request that could end an engine, or that no engine takes.

        `request` is the frontend's, with `token_ids` as a list.
        """
        if not request["token_ids"]:
            raise _refused("prompt: it has no tokens: send at least one")
        self._require_tokens("prompt", request["token_ids"])
        for bounds in self._table:
            value = _section(request, bounds.section).get(bounds.name)
            if value is not None:
                bounds.require(value)
        stop = _section(request, "stop_conditions")
        for name in _STOP_TOKENS:
            self._require_tokens("stop_token_ids", stop.get(name) or ())
        _require_room_for_an_end(request)
        _require_no_rank(request)

    def _require_tokens(self, name: str, token_ids: Sequence[Any]) -> None:
        """Each an index of the engine's tensors. A prompt has thousands: two passes in C."""
        for token_id in (min(token_ids), max(token_ids)) if token_ids else ():
            if type(token_id) is not int or not 0 <= token_id < self._vocabulary:
                raise _refused(
                    f"{name}: {token_id!r:.40} is not a token of this model: send ids from 0 to "
                    f"{self._vocabulary - 1}, its vocabulary has {self._vocabulary}"
                )


#: Fields of `stop_conditions` whose ids all reach the engine.
_STOP_TOKENS: Final = ("stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden")


def _require_room_for_an_end(request: Request) -> None:
    """An engine must have a token to choose in every step."""
    stop = _section(request, "stop_conditions")
    least = stop.get("min_tokens") or 0
    most = stop.get("max_tokens")
    if most is not None and least > most:
        raise _refused(f"min_tokens: {least} is more than max_tokens, which is {most}")


def _require_no_rank(request: Request) -> None:
    """Of a prefill worker, which nobody has chosen yet: a decode engine would find no KV there."""
    rank = _section(request, "routing").get("prefill_dp_rank")
    if rank is not None:
        raise _refused(
            f"prefill_dp_rank: {rank!r:.40} is not possible: the processor chooses the prefill "
            "worker: leave it out"
        )


def _section(request: Request, name: str) -> Mapping[str, Any]:
    return request.get(name) or {}


def _refused(text: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, text)


def vocabulary_in(config: Mapping[str, Any], model_path: str) -> int:
    """Width of an engine's logits, from the model's config.json. Raises `ValueError`, one line."""
    for part in (config.get("text_config") or {}, config):
        size = part.get("vocab_size")
        if type(size) is int and size > 0:
            return size
    raise ValueError(
        f"--model-path: {model_path} names no vocab_size in config.json, by which token ids are "
        "checked: add the width of the model's logits"
    )
