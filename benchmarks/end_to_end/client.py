# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A client of the frontend that takes times.

Every request has a connection of its own. On one that was used before, the system acknowledges what
arrives up to 40 ms late, and the frontend sends the first token of a stream only after the headers
are acknowledged: that wait would hide all that is faster.
"""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from benchmarks.end_to_end.questions import MAX_TOKENS, Question

REQUEST_DEADLINE_S: Final = 60.0

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"


class Failed(Exception):
    """No full answer."""


@dataclass(frozen=True)
class Reply:
    """An answer of `MAX_TOKENS` tokens; times in seconds from the moment the request was sent."""

    text: str
    total_s: float
    first_token_s: float
    """Until the answer as a whole, where it is not streamed."""


class Client:
    """Sends requests; a context manager."""

    def __init__(self, base_url: str) -> None:
        self.asked = 0
        self._url = f"{base_url}/chat/completions"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S),
            headers={"content-type": "application/json"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(self, question: Question) -> Reply:
        """Raises `Failed`: an error, no answer in time, or one that is not whole."""
        self.asked += 1
        try:
            return await self._ask(question)
        except TimeoutError:
            raise Failed(f"no answer in {REQUEST_DEADLINE_S:g} s") from None
        except (aiohttp.ClientError, ValueError, KeyError, IndexError) as error:
            raise Failed(f"{type(error).__name__}: {error}") from error

    async def _ask(self, question: Question) -> Reply:
        started = time.monotonic()
        first = 0.0
        text, num_tokens = "", 0
        async with self._session.post(self._url, data=question.body) as response:
            if response.status != 200:
                raise Failed(f"status {response.status}: {(await response.text())[:200]}")
            async for part in _parts(response, question.stream):
                if "error" in part:
                    raise Failed(f"broken off: {part['error']}")
                text += _content(part)
                first = first or (time.monotonic() - started if text else 0.0)
                num_tokens = (part.get("usage") or {}).get("completion_tokens", num_tokens)
        if num_tokens != MAX_TOKENS:
            raise Failed(f"{num_tokens} tokens instead of {MAX_TOKENS}: {text!r}")
        return Reply(text, time.monotonic() - started, first)


async def _parts(response: aiohttp.ClientResponse, stream: bool) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, or the one body."""
    if not stream:
        yield json.loads(await response.read())
        return
    async for line in response.content:
        data = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and data != _DONE:
            yield json.loads(data)


def _content(part: dict[str, Any]) -> str:
    choices = part.get("choices")
    if not choices:
        return ""
    message = choices[0].get("delta") or choices[0].get("message") or {}
    return message.get("content") or ""
