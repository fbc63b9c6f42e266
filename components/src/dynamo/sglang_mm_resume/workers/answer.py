# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a request has been answered so far, and how it goes on where its worker was lost.

Another worker is asked for the rest: the prompt, then the tokens that the client has already, as
Dynamo's own migration does it. The client sees one answer, with the usage of one.
"""

from collections.abc import Collection, Iterator
from typing import Any

from dynamo.sglang_mm_resume.workers.request import num_choices

Request = dict[str, Any]
Chunk = dict[str, Any]


class Answer:
    """Of one request, in parts: one per worker that it took."""

    def __init__(self, request: Request, media_tokens: Collection[int]) -> None:
        """`media_tokens`: ids that stand for media in a prompt, wherever they come from."""
        self.begun = False
        self.num_parts = 0
        self.token_ids: list[int] = []  # of the only choice, where there is one
        self._request = request
        self._media_tokens = frozenset(media_tokens)
        self._earlier = 0  # tokens of the parts before this one

    def next_part(self) -> Request:
        """The request for what is missing. What is added from now on answers it."""
        self.num_parts += 1
        self._earlier = len(self.token_ids)
        if not self.token_ids:
            return self._request
        stop = dict(self._request.get("stop_conditions") or {})
        for limit in ("max_tokens", "min_tokens"):
            if stop.get(limit) is not None:
                stop[limit] = max(0, stop[limit] - self._earlier)
        token_ids = [*self._request["token_ids"], *self.token_ids]
        return {**self._request, "token_ids": token_ids, "stop_conditions": stop}

    def take_part_back(self) -> None:
        """The last part was refused before it began: it counts for nothing."""
        self.num_parts -= 1

    def add(self, chunk: Chunk) -> Chunk:
        """One more chunk, as the client is to see it."""
        self.begun = True
        if num_choices(self._request) == 1:
            self.token_ids += chunk.get("token_ids") or ()
        usage = chunk.get("completion_usage")
        if not usage or not self._earlier:
            return chunk
        return {**chunk, "completion_usage": _moved(usage, self._earlier)}

    @property
    def has_progressed(self) -> bool:
        """Whether this part has brought tokens."""
        return len(self.token_ids) > self._earlier

    def hindrances(self) -> Iterator[str]:
        """Why nobody else can go on with it as its worker would have; nothing before it begins."""
        if self.begun:
            yield from _hindrances(self._request)
            if self._media_tokens.intersection(self.token_ids):
                yield "the answer contains a placeholder of media"


def _hindrances(request: Request) -> Iterator[str]:
    """What an engine knows of an answer beside its tokens."""
    sampling = request.get("sampling_options") or {}
    if num_choices(request) != 1:
        yield "n"
    if sampling.get("guided_decoding"):
        yield "guided decoding"
    if sampling.get("presence_penalty") or sampling.get("frequency_penalty"):
        yield "penalties"  # an engine counts what it has generated itself
    elif sampling.get("repetition_penalty") not in (None, 1):
        yield "penalties"
    if (request.get("stop_conditions") or {}).get("max_thinking_tokens") is not None:
        yield "a thinking budget"
    if (request.get("output_options") or {}).get("prompt_logprobs") is not None:
        yield "prompt_logprobs"  # they come with the end of an answer


def _moved(usage: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """What was the end of the prompt for this worker is the beginning of the client's answer."""
    prompt_tokens = usage["prompt_tokens"] - num_tokens
    moved = {
        **usage,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": usage["completion_tokens"] + num_tokens,
    }
    details = usage.get("prompt_tokens_details")
    if details and details.get("cached_tokens") is not None:
        cached_tokens = min(details["cached_tokens"], prompt_tokens)
        moved["prompt_tokens_details"] = {**details, "cached_tokens": cached_tokens}
    return moved
