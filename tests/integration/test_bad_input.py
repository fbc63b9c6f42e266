# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever a client gets wrong: the right 4xx, soon, saying what to change; the next is served.

What may be wrong with a picture itself has a list of its own: tests/faults/test_bad_media.py.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, request_body
from tests.support.deployments import CONTEXT_LENGTH, MODEL_NAME, SMALL_POOL
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import patchwork

DEPLOYMENT = SMALL_POOL

REFUSED_WITHIN_S = 2.0
TRIES = 2  # The better one counts: a pause of a busy machine is no slow refusal.
CLIENT_TIMEOUT_S = 20.0
MAX_TOKENS = 12
QUESTION = "What is this?"
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"

GOOD = patchwork(7, 7, 6)
GOOD_URL = data_url(GOOD)
NO_PICTURE = "data:image/png;base64," + base64.b64encode(b"not a picture").decode("ascii")
# Each is within the context, both together are not.
HALF_CONTEXT = Image.new("RGB", (28 * 40, 28 * 30), "teal")
WHOLE_CONTEXT = Image.new("RGB", (28 * 46, 28 * 46), "teal")


@dataclass(frozen=True)
class Case:
    """A request, what its refusal must say, and the status."""

    name: str
    says: Sequence[str]
    images: Sequence[str] = ()
    question: str = QUESTION
    status: int = 400
    model: str = MODEL_NAME
    extra: dict[str, Any] = field(default_factory=dict)
    frontend_refuses: bool = False
    """Before the stream begins: then a streamed request has the status as well."""
    says_something: bool = False
    """A stream has begun to answer when it turns out."""


PLACEHOLDERS = ("placeholder", "one image per placeholder")
CASES = [
    Case("placeholder-as-text", PLACEHOLDERS, question=f"Look: {PLACEHOLDER}"),
    Case("one-placeholder-too-many", PLACEHOLDERS, [GOOD_URL], "Look: <|image_pad|>"),
    Case(
        "one-image-too-many",
        ("0 image placeholder", "1 image", "one image per placeholder"),
        [GOOD_URL],
        extra={"nvext": {"token_data": [5, 6, 7]}},
    ),
    Case("undecodable", ("image 1", "send JPEG, PNG or WebP"), [NO_PICTURE]),
    Case("second-is-undecodable", ("image 2", "send JPEG"), [GOOD_URL, NO_PICTURE]),
    Case("empty-url", ("Invalid",), [""], frontend_refuses=True),
    Case("too-many-images", ("5 media items", "at most 4", "max-media-items"), [GOOD_URL] * 5),
    Case("picture-beyond-context", ("pictures", "smaller"), [data_url(WHOLE_CONTEXT)]),
    Case(
        "pictures-beyond-context-together",
        ("fewer or smaller pictures", "shorter text"),
        [data_url(HALF_CONTEXT)] * 2,
    ),
    Case("text-beyond-context", (f"{CONTEXT_LENGTH} tokens", "longer"), question="word " * 3000),
    Case(
        "grammar-that-ends-too-early",
        ("allows no further token", "min_tokens"),
        extra={"guided_regex": "a", "min_tokens": 6},
        says_something=True,
    ),
    Case(
        "unknown-model",
        ("Model not found",),
        [GOOD_URL],
        status=404,
        model="no-such-model",
        frontend_refuses=True,
    ),
]


@pytest.fixture(scope="module")
def good_answer(oracle: Oracle) -> OracleAnswer:
    return oracle.generate([GOOD], QUESTION, MAX_TOKENS)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_refused_and_the_next_is_served(
    stack: LocalStack, good_answer: OracleAnswer, case: Case, stream: bool
) -> None:
    answers: list[Answer] = []
    while len(answers) < TRIES and not any(a.total_s < REFUSED_WITHIN_S for a in answers):
        answers.append(_ask_wrongly(stack, case, stream))
        _assert_refused(answers[-1], case, stream)
    best_s = min(answer.total_s for answer in answers)
    print(f"{case.name}: {best_s:.3f} s, {answers[-1].status}, {answers[-1].error}")
    assert best_s < REFUSED_WITHIN_S
    _assert_serves(stack, good_answer)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "video_url", "video_url": {"url": GOOD_URL}}, "video 1: "),
        ({"type": "audio_url", "audio_url": {"url": GOOD_URL}}, "send images or videos"),
        ({"type": "image_url"}, "Invalid"),
        ({"type": "picture"}, "deserialize"),
    ],
    ids=["picture-as-video", "audio", "no-url", "unknown-part"],
)
def test_wrong_part_of_a_message(
    stack: LocalStack, good_answer: OracleAnswer, part: dict[str, Any], says: str
) -> None:
    body = request_body(MODEL_NAME, [], QUESTION)
    body["messages"][0]["content"].insert(0, part)
    assert says in _post(stack, "chat/completions", body, 400)
    _assert_serves(stack, good_answer)


def test_completions_with_a_placeholder_as_text(
    stack: LocalStack, good_answer: OracleAnswer
) -> None:
    body = {"model": MODEL_NAME, "prompt": f"Look: {PLACEHOLDER}", "max_tokens": 4}
    assert "one image per placeholder" in _post(stack, "completions", body, 400)
    _assert_serves(stack, good_answer)


def test_served_at_once_after_a_refusal_for_length(
    stack: LocalStack, good_answer: OracleAnswer
) -> None:
    refused = ask(stack.base_url, MODEL_NAME, [data_url(WHOLE_CONTEXT)], QUESTION)
    assert refused.status == 400
    answer = _assert_serves(stack, good_answer)
    print(f"after a refusal for length: {answer.total_s:.3f} s")


def _ask_wrongly(stack: LocalStack, case: Case, stream: bool) -> Answer:
    return ask(
        stack.base_url,
        case.model,
        case.images,
        case.question,
        MAX_TOKENS,
        stream,
        timeout_s=CLIENT_TIMEOUT_S,
        **case.extra,
    )


def _assert_refused(answer: Answer, case: Case, stream: bool) -> None:
    assert answer.error is not None, answer.raw
    assert answer.error["code"] == case.status
    in_stream = stream and not case.frontend_refuses
    assert answer.status == (200 if in_stream else case.status)
    for needed in case.says:
        assert needed in answer.error_message
    assert answer.text == "" or (stream and case.says_something)
    assert len(answer.error_message) < 1000, "a whole data URL, perhaps"


def _assert_serves(stack: LocalStack, expected: OracleAnswer) -> Answer:
    answer = ask(stack.base_url, MODEL_NAME, [GOOD_URL], QUESTION, MAX_TOKENS)
    assert_exact(answer, expected)
    return answer


def _post(stack: LocalStack, path: str, body: dict[str, Any], status: int) -> str:
    """The message of a refusal, which must come in time."""
    url = f"{stack.base_url}/{path}"
    tries_s: list[float] = []
    while len(tries_s) < TRIES and not any(seconds < REFUSED_WITHIN_S for seconds in tries_s):
        started_at = time.monotonic()
        answer = httpx.post(url, json=body, trust_env=False, timeout=CLIENT_TIMEOUT_S)
        tries_s.append(time.monotonic() - started_at)
        assert answer.status_code == status
    assert min(tries_s) < REFUSED_WITHIN_S
    return str(answer.json()["message"])
