# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A client of the frontend that shows everything a test may want to check.

Not the OpenAI client, which retries, raises on errors and hides the fields that Dynamo adds.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

_DONE = "[DONE]"


@dataclass
class ToolCall:
    """A function that the model wants to be called."""

    name: str
    arguments: str
    """JSON, as the model wrote it."""


@dataclass
class Answer:
    """One answer, streamed or not, in one form; with several choices, the first of them."""

    status: int
    """HTTP status. A stream that breaks later has status 200 and an `error`."""
    text: str = ""
    reasoning: str = ""
    """What a reasoning parser took out of the text."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    """New tokens as the engine gave them, with the end token where there is one."""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    engine_data: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Entries of the choice, one per token; empty unless asked for by `logprobs=True`."""
    error: dict[str, Any] | None = None
    """Body of an error response, or the error event in a stream."""
    num_chunks: int = 0
    """Events of the stream that carried a choice."""
    first_token_s: float | None = None
    """Seconds until the first of them (streams only)."""
    total_s: float = 0.0
    raw: list[dict[str, Any]] = field(default_factory=list)
    """Every JSON object that came, for what has no field here."""

    @property
    def ok(self) -> bool:
        """A full answer: status 200, no error, a finish reason."""
        return self.status == 200 and self.error is None and self.finish_reason is not None

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the engine had computed before."""
        return int(
            ((self.usage or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        )

    def choice(self, index: int) -> Answer:
        """Another of several choices. Its token ids are not known: Dynamo tells them for one."""
        other = Answer(self.status, error=self.error)
        for content in self.raw:
            _add(other, content, index)
        return other

    @property
    def error_message(self) -> str:
        """Text of the error, empty without one."""
        return "" if self.error is None else str(self.error.get("message", ""))


def ask(
    base_url: str,
    model: str,
    images: Sequence[str],
    question: str,
    max_tokens: int | None = 16,
    stream: bool = False,
    timeout_s: float = 120.0,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Answer:
    """Ask about pictures, given as URLs, in this order. `extra` goes into the body as it is."""
    body = request_body(model, images, question, max_tokens, stream, **extra)
    return post(f"{base_url}/chat/completions", body, timeout_s, headers)


def post(
    url: str,
    body: dict[str, Any],
    timeout_s: float = 120.0,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Send any request of the OpenAI API."""
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return send(url, content, timeout_s, headers)


def send(
    url: str, content: bytes, timeout_s: float = 120.0, headers: dict[str, str] | None = None
) -> Answer:
    """Send any body, which is JSON or claims to be."""
    started_at = time.monotonic()
    headers = {"content-type": "application/json"} | (headers or {})
    # trust_env: loopback must not go through a proxy that the environment names.
    with (
        httpx.Client(trust_env=False, timeout=timeout_s) as client,
        client.stream("POST", url, content=content, headers=headers) as response,
    ):
        answer = Answer(response.status_code)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            for event in _events(response.iter_lines()):
                _add_event(answer, event, time.monotonic() - started_at)
        else:
            _add_body(answer, response.read())
    answer.total_s = time.monotonic() - started_at
    return answer


def request_body(
    model: str,
    images: Sequence[str],
    question: str,
    max_tokens: int | None = 16,
    stream: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """A greedy chat completion that asks for token ids and for our figures."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in images]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
        "temperature": 0,
        "stream": stream,
        "nvext": {"extra_fields": ["engine_data", "completion_token_ids"]},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body | extra


def png(image: Image.Image) -> bytes:
    """A picture as a file."""
    return base64.b64decode(data_url(image).partition(",")[2])


def data_url(image: Image.Image, image_format: str = "PNG") -> str:
    """A picture as a URL that contains it."""
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{image_format.lower()};base64,{encoded}"


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Data of server-sent events; Dynamo also sends comments and named events."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != _DONE:
            yield json.loads(data)


def _add_event(answer: Answer, event: dict[str, Any], now_s: float) -> None:
    if "error" in event:
        answer.raw.append(event)
        answer.error = event["error"]
        return
    if event.get("choices"):
        answer.num_chunks += 1
        answer.first_token_s = answer.first_token_s or now_s
    _add(answer, event)


def _add_body(answer: Answer, body: bytes) -> None:
    try:
        content = json.loads(body)
    except ValueError:
        content = {"message": body.decode(errors="replace")}
    if answer.status == 200:
        _add(answer, content)
    else:
        answer.raw.append(content)
        answer.error = content.get("error", content)


def _add(answer: Answer, content: dict[str, Any], index: int = 0) -> None:
    """Add what a whole response, or one chunk of a stream, contains of one choice."""
    answer.raw.append(content)
    answer.usage = content.get("usage") or answer.usage
    nvext = content.get("nvext") or {}
    answer.engine_data = nvext.get("engine_data") or answer.engine_data
    answer.token_ids += nvext.get("completion_token_ids") or []
    for choice in content.get("choices", []):
        if choice["index"] == index:
            _add_choice(answer, choice)


def _add_choice(answer: Answer, choice: dict[str, Any]) -> None:
    said = choice.get("message") or choice.get("delta") or {}
    answer.text += said.get("content") or choice.get("text") or ""
    answer.reasoning += said.get("reasoning_content") or ""
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.token_ids += choice.get("response_token_ids") or []  # SGLang's own server
    answer.logprobs += _logprobs(choice.get("logprobs") or {})
    for call in said.get("tool_calls") or []:
        _add_call(answer.tool_calls, call)


def _logprobs(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per token, from the form of chats or of text completions."""
    pairs = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
    return logprobs.get("content") or [{"token": t, "logprob": p} for t, p in pairs]


def _add_call(calls: list[ToolCall], piece: dict[str, Any]) -> None:
    """A stream names a call in its first piece, and sends the arguments bit by bit."""
    function = piece["function"]
    if function.get("name"):
        calls.append(ToolCall(function["name"], ""))
    calls[piece.get("index", -1)].arguments += function.get("arguments") or ""
