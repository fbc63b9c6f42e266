# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which bodies are refused. Whether rightly so: tests/workers/test_content_arrives.py."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from dynamo.sglang_mm_resume.workers.content import CHAT, MAX_OBJECTS, MESSAGES, RESPONSES, Api

MAX_MEDIA = 4
SOON_S = 3.0
"""For a body that is made to take long; 0.2 s on an idle core."""

TEXT = {"type": "text", "text": "hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def complaint(api: Api, body: Any) -> str | None:
    return api.complaint(json.dumps(body).encode(), MAX_MEDIA)


def of(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, {"role": role, "content": [*parts]}]}


def test_it_names_the_place_the_type_and_what_to_send() -> None:
    text = complaint(CHAT, of("user", TEXT, AUDIO))
    assert text is not None
    assert text.startswith("messages[1].content[1]: content of type 'input_audio' ")
    assert text.endswith("send image_url, text, video_url there")


@pytest.mark.parametrize("escaped", ["\\u0069nput_audio", "input\\u005faudio", "input_audi\\u006F"])
def test_escapes_hide_nothing(escaped: str) -> None:
    body = json.dumps(of("user", AUDIO)).replace("input_audio", escaped)
    assert "input_audio" not in body.partition("data")[0]
    text = CHAT.complaint(body.encode(), MAX_MEDIA)
    assert text is not None
    assert "'input_audio'" in text


def test_words_in_a_text_are_no_types() -> None:
    text = {"type": "text", "text": json.dumps(AUDIO)}
    assert complaint(CHAT, of("user", text)) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"messages":[{"role":"user","content":5}]}',
        b'{"messages":[{"role":"user","content":[{"type":5}]}]}',
        b'{"messages":[{"role":"user","content":[5]}]}',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
        b'{"messages":' + b"[" * 100_000,
        b'{"x":' * 100_000,
        b'{"messages":[{"role":"assistant","content":"","audio":{"id":"a"}}]}',
    ],
)
def test_what_cannot_be_understood_is_refused(body: bytes) -> None:
    assert CHAT.complaint(body, MAX_MEDIA)


def test_unknown_fields_and_roles_are_left_to_dynamo() -> None:
    """Dynamo refuses roles that it does not know."""
    assert complaint(CHAT, {"model": "m", "x": [1], **of("nobody", AUDIO)}) is None
    assert complaint(CHAT, {"messages": [{"role": "user", "content": None, "audio": None}]}) is None


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (
            CHAT,
            of("user", *[IMAGE] * 3) | {"messages": [*of("user", *[IMAGE] * 3)["messages"]] * 2},
        ),
        (CHAT, of("user", *[IMAGE] * (MAX_MEDIA + 1))),
        (MESSAGES, of("user", *[{"type": "image"}] * (MAX_MEDIA + 1))),
        (
            MESSAGES,
            of("user", *[{"type": "tool_result", "content": [{"type": "image"}]}] * 5),
        ),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image"}] * (MAX_MEDIA + 1)}]},
        ),
    ],
)
def test_media_are_counted_over_the_whole_request(api: Api, body: Any) -> None:
    """The frontend would already write a prompt of millions of tokens for the images' sizes."""
    assert "DYN_SGL_MM_RESUME_MAX_MEDIA_ITEMS" in (complaint(api, body) or "")
    assert complaint(CHAT, of("user", *[IMAGE] * MAX_MEDIA)) is None


def test_a_body_that_would_take_long_is_refused_soon() -> None:
    body = b'{"messages":[' + b"{}," * (14 * 2**20) + b"{}]}"
    before = time.monotonic()
    assert f"{MAX_OBJECTS} JSON objects" in (CHAT.complaint(body, MAX_MEDIA) or "")
    assert time.monotonic() - before < SOON_S
    large = of("user", {"type": "text", "text": "{" * (MAX_OBJECTS // 2) + " " * 2**22})
    assert complaint(CHAT, large) is None


def test_refusals_have_the_form_of_the_endpoint() -> None:
    assert CHAT.refusal("x") == {"message": "x", "type": "Bad Request", "code": 400}
    error = {"type": "invalid_request_error", "message": "x"}
    assert MESSAGES.refusal("x") == {"type": "error", "error": error}
