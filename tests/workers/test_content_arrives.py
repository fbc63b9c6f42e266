# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the frontend of Dynamo passes on, asked of it, against what we refuse in front of it.

A worker without an engine says what reached it. When a release of Dynamo passes on more, or drops
more, the case that is concerned fails here: then workers/content.py changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from dynamo.sglang_mm_resume.workers.content import CHAT, MESSAGES, RESPONSES, Api
from dynamo.sglang_mm_resume.workers.request import WHITE_SQUARE
from examples.local_stack import free_ports
from tests.support.worker_status import wait_until

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "examples" / "demo_model" / "weights"
NAME = "echo"
DEADLINE_S = 60.0
MAX_MEDIA = 4
WORD = "unmistakable"

APIS = {"/v1/chat/completions": CHAT, "/v1/responses": RESPONSES, "/v1/messages": MESSAGES}
CHAT_PATH, RESPONSES_PATH, MESSAGES_PATH = APIS

HI: dict[str, Any] = {"role": "user", "content": "hi"}
TEXT = {"type": "text", "text": WORD}
IMAGE = {"type": "image_url", "image_url": {"url": WHITE_SQUARE}}
VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
SOUND = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
INPUT_TEXT = {"type": "input_text", "text": WORD}
INPUT_IMAGE = {"type": "input_image", "image_url": WHITE_SQUARE, "detail": "auto"}
FUNCTION_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
ANTHROPIC_IMAGE = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": WHITE_SQUARE.partition(",")[2],
    },
}
TOOL_USE = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
}


def _chat(role: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    before = [CALL] if role == "tool" else []
    extra = {"tool_call_id": "c"} if role == "tool" else {"name": "f"} if role == "function" else {}
    message = {"role": role, "content": [*parts], **extra, **more}
    return {"messages": [HI, *before, message, HI], "max_tokens": 1}


def _responses(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [HI, {"type": "message", "role": role, "content": [*parts]}, HI]}


def _item(*items: dict[str, Any]) -> dict[str, Any]:
    return {"input": [HI, *items]}


def _messages(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    before = [TOOL_USE] if parts[0]["type"] == "tool_result" else []
    after = [HI] if role == "assistant" else []
    return {"messages": [HI, *before, {"role": role, "content": [*parts]}, *after], "max_tokens": 1}


def _result(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t", "content": [*parts]}


#: Path, body, and what of it is not to be lost: a kind of media, or the word.
ARRIVES: dict[str, tuple[str, dict[str, Any], str]] = {
    **{f"chat {r} text": (CHAT_PATH, _chat(r, TEXT), WORD) for r in ("system", "user", "tool")},
    "chat developer text": (CHAT_PATH, _chat("developer", TEXT), WORD),
    "chat assistant text": (CHAT_PATH, _chat("assistant", TEXT), WORD),
    "chat user image": (CHAT_PATH, _chat("user", IMAGE, TEXT), "image_url"),
    "chat user video": (CHAT_PATH, _chat("user", VIDEO), "video_url"),
    "chat user audio_url": (CHAT_PATH, _chat("user", SOUND, TEXT), "audio_url"),
    "chat tool image": (CHAT_PATH, _chat("tool", IMAGE), "image_url"),
    "chat tool video": (CHAT_PATH, _chat("tool", VIDEO), "video_url"),
    "chat tool audio_url": (CHAT_PATH, _chat("tool", SOUND), "audio_url"),
    "responses user text": (RESPONSES_PATH, _responses("user", INPUT_TEXT), WORD),
    "responses user image": (RESPONSES_PATH, _responses("user", INPUT_IMAGE), "image_url"),
    "responses system text": (RESPONSES_PATH, _responses("system", INPUT_TEXT), WORD),
    "responses developer text": (RESPONSES_PATH, _responses("developer", INPUT_TEXT), WORD),
    "responses assistant text": (
        RESPONSES_PATH,
        _responses("assistant", {"type": "output_text", "text": WORD, "annotations": []}),
        WORD,
    ),
    "responses assistant refusal": (
        RESPONSES_PATH,
        _responses("assistant", {"type": "refusal", "refusal": WORD}),
        WORD,
    ),
    "responses assistant input_text": (RESPONSES_PATH, _responses("assistant", INPUT_TEXT), WORD),
    "responses output text": (
        RESPONSES_PATH,
        _item(FUNCTION_CALL, {"type": "function_call_output", "call_id": "c", "output": WORD}),
        WORD,
    ),
    "responses output image": (
        RESPONSES_PATH,
        _item(
            FUNCTION_CALL,
            {"type": "function_call_output", "call_id": "c", "output": [INPUT_IMAGE]},
        ),
        "image_url",
    ),
    "responses reasoning": (
        RESPONSES_PATH,
        _item(
            {
                "type": "reasoning",
                "id": "r",
                "summary": [{"type": "summary_text", "text": WORD}],
            },
            {"role": "user", "content": "hi"},
        ),
        WORD,
    ),
    "messages thinking": (
        MESSAGES_PATH,
        _messages("assistant", {"type": "thinking", "thinking": WORD, "signature": "s"}),
        WORD,
    ),
    "messages user text": (MESSAGES_PATH, _messages("user", TEXT), WORD),
    "messages user image": (MESSAGES_PATH, _messages("user", ANTHROPIC_IMAGE), "image_url"),
    "messages assistant text": (MESSAGES_PATH, _messages("assistant", TEXT), WORD),
    "messages tool_result text": (MESSAGES_PATH, _messages("user", _result(TEXT)), WORD),
    "messages tool_result image": (
        MESSAGES_PATH,
        _messages("user", _result(ANTHROPIC_IMAGE)),
        "image_url",
    ),
    "messages system": (MESSAGES_PATH, {**_messages("user", TEXT), "system": [TEXT]}, WORD),
}

#: Path, body, and what of it does not arrive, though Dynamo answers.
IS_LOST: dict[str, tuple[str, dict[str, Any], str]] = {
    "chat user input_audio": (CHAT_PATH, _chat("user", AUDIO), "audio_url"),
    "chat user input_audio, image": (CHAT_PATH, _chat("user", IMAGE, AUDIO), "audio_url"),
    "chat assistant audio": (CHAT_PATH, _chat("assistant", audio={"id": WORD}), WORD),
    "chat assistant refusal": (
        CHAT_PATH,
        _chat("assistant", {"type": "refusal", "refusal": WORD}),
        WORD,
    ),
    "chat assistant's refusal": (CHAT_PATH, _chat("assistant", refusal=WORD), WORD),
    "responses system image": (RESPONSES_PATH, _responses("system", INPUT_IMAGE), "image_url"),
    "responses developer image": (
        RESPONSES_PATH,
        _responses("developer", INPUT_IMAGE),
        "image_url",
    ),
    "responses assistant image": (
        RESPONSES_PATH,
        _responses("assistant", INPUT_IMAGE),
        "image_url",
    ),
    "responses item_reference": (
        RESPONSES_PATH,
        _item({"type": "item_reference", "id": WORD}),
        WORD,
    ),
    "responses custom tool": (
        RESPONSES_PATH,
        _item({"type": "custom_tool_call_output", "call_id": "c", "output": WORD}),
        WORD,
    ),
    "responses screenshot": (
        RESPONSES_PATH,
        _item(
            {
                "type": "computer_call_output",
                "call_id": "c",
                "output": {"type": "computer_screenshot", "image_url": WHITE_SQUARE},
            }
        ),
        "image_url",
    ),
    "responses conversation": (RESPONSES_PATH, {"input": "hi", "conversation": WORD}, WORD),
    "messages assistant image": (
        MESSAGES_PATH,
        _messages("assistant", ANTHROPIC_IMAGE, TEXT),
        "image_url",
    ),
    "messages redacted_thinking": (
        MESSAGES_PATH,
        _messages("assistant", {"type": "redacted_thinking", "data": WORD}),
        WORD,
    ),
    "messages web_search_tool_result": (
        MESSAGES_PATH,
        _messages(
            "assistant",
            {"type": "web_search_tool_result", "tool_use_id": WORD, "content": []},
        ),
        WORD,
    ),
}

#: What Dynamo refuses itself, if not always by name.
IS_REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat user file": (CHAT_PATH, _chat("user", {"type": "file", "file": {"file_id": "f"}})),
    "chat system image": (CHAT_PATH, _chat("system", IMAGE)),
    "chat assistant image": (CHAT_PATH, _chat("assistant", IMAGE)),
    "chat tool input_audio": (CHAT_PATH, _chat("tool", AUDIO)),
    "responses file": (
        RESPONSES_PATH,
        _responses("user", {"type": "input_file", "file_id": "f"}),
    ),
    "responses audio": (RESPONSES_PATH, _responses("user", AUDIO)),
    "messages document": (
        MESSAGES_PATH,
        _messages(
            "user",
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": WORD},
            },
        ),
    ),
    "messages tool_result document": (
        MESSAGES_PATH,
        _messages("user", _result({"type": "document", "source": {}})),
    ),
    "messages system image": (
        MESSAGES_PATH,
        {**_messages("user", TEXT), "system": [ANTHROPIC_IMAGE]},
    ),
}


@dataclass
class Dynamo:
    """Dynamo's own frontend and a worker that writes down what it gets."""

    url: str
    seen: Path
    tokenizer: Tokenizer

    def ask(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any] | None]:
        """The status, and what reached the worker: `text` and `media`."""
        before = self._lines()
        answer = httpx.post(
            self.url + path, json={"model": NAME, **body}, trust_env=False, timeout=DEADLINE_S
        )
        new = self._lines()[len(before) :]
        if not new:
            return answer.status_code, None
        request = json.loads(new[0])
        text = self.tokenizer.decode(request["token_ids"], skip_special_tokens=False)
        return answer.status_code, {"text": text, "media": request["media"]}

    def _lines(self) -> list[str]:
        return self.seen.read_text().splitlines()


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dynamo]:
    folder = tmp_path_factory.mktemp("echo")
    seen = folder / "seen.jsonl"
    seen.touch()
    (port,) = free_ports(1)
    environ = {
        **os.environ,
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(folder / "discovery"),
    }
    echo = [str(ROOT / "tests/support/echo_worker.py"), str(MODEL), NAME, str(seen)]
    frontend = ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    with ExitStack() as processes, (folder / "log").open("w") as log:
        for argv in (echo, [*frontend, "--enable-anthropic-api"]):
            process = subprocess.Popen([sys.executable, *argv], env=environ, stdout=log, stderr=log)
            processes.callback(process.wait)
            processes.callback(process.kill)
        found = Dynamo(
            f"http://127.0.0.1:{port}", seen, Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        )
        assert wait_until(lambda: _lists(found.url), DEADLINE_S), (folder / "log").read_text()
        yield found


@pytest.mark.parametrize("case", ARRIVES)
def test_what_reaches_the_model_is_not_refused(dynamo: Dynamo, case: str) -> None:
    path, body, wanted = ARRIVES[case]
    assert _complaint(APIS[path], body) is None
    status, seen = dynamo.ask(path, body)
    assert status == 200
    assert seen is not None
    assert wanted in seen["text"] or seen["media"].get(wanted) == 1


@pytest.mark.parametrize("case", IS_LOST)
def test_what_does_not_reach_the_model_is_refused(dynamo: Dynamo, case: str) -> None:
    path, body, lost = IS_LOST[case]
    assert _complaint(APIS[path], body)
    status, seen = dynamo.ask(path, body)
    assert status == 200
    assert seen is not None
    assert lost not in seen["text"]
    assert lost not in seen["media"]


@pytest.mark.parametrize("case", IS_REFUSED)
def test_what_dynamo_refuses_is_refused_by_name(dynamo: Dynamo, case: str) -> None:
    path, body = IS_REFUSED[case]
    assert _complaint(APIS[path], body)
    assert dynamo.ask(path, body) == (400, None)


def _complaint(api: Api, body: dict[str, Any]) -> str | None:
    return api.complaint(json.dumps(body).encode(), MAX_MEDIA)


def _lists(url: str) -> bool:
    try:
        return NAME in httpx.get(f"{url}/v1/models", trust_env=False).text
    except httpx.TransportError:
        return False
