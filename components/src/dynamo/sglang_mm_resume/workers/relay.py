# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""An HTTP relay in front of Dynamo's own server, for what Dynamo cannot be told.

It adds `Retry-After`, refuses what Dynamo would leave out silently (workers/content.py), and keeps
a client's `x-dynamo-request-id` from naming anything behind it. Everything else passes as it is,
piece by piece: only conversations are held as a whole, until they are sent on. HTTP/1.1 without
upgrades: WebSockets are not relayed.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from dynamo.sglang_mm_resume.workers.content import Api

#: Dynamo takes its value for the id of a request on every hop. Two requests of one id at the same
#: time fail, and the worker that they were for is then avoided for seconds: by everybody.
DYNAMO_REQUEST_ID: Final = "x-dynamo-request-id"
#: Its value names a request in Dynamo's log lines and comes back with the answer. Nothing else.
REQUEST_ID: Final = "x-request-id"

#: Statuses that mean "later": too many requests, unavailable, not taken in time, overloaded.
RETRY_STATUSES: Final = frozenset({429, 503, 504, 529})

# RFC 9110, section 7.6.1: these belong to one connection. `Expect` is answered here.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Dynamo's server takes longer lines than aiohttp's 8 kB; cookies and traces can be long.
_MAX_HEADER_BYTES: Final = 256 * 1024
_BACKLOG: Final = 1024
_PIECE_BYTES: Final = 2**18
# Answers are finished with Dynamo; this is for what slow clients have not read by then.
_LAST_BYTES_S: Final = 5.0
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the relay adds and refuses.

    `retry_after_s`: for answers that mean "later" and do not say when. `max_body_mib`: what the
    server behind takes; it would close the connection in the middle of a larger body, and its
    refusal would be lost with it. `conversations`: the endpoints whose bodies are looked into, by
    their paths.
    """

    retry_after_s: int
    max_body_mib: int
    max_media_items: int
    conversations: Mapping[str, Api]


class _TooLarge(Exception):
    """A body exceeds the limit."""


class _Refused(Exception):
    """A body must go no further; the argument is that of the answer."""


@asynccontextmanager
async def relay(listener: socket.socket, upstream: str, rules: Rules) -> AsyncIterator[None]:
    """Serve on the bound socket `listener`, which is closed at the end, from the URL `upstream`."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=_NO_TIMEOUT,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=(hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT),
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
    ) as session:
        handler = _Handler(session, upstream, rules)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler.handle)
        app.on_response_prepare.append(_without_server_name)
        runner = web.AppRunner(
            app,
            access_log=None,
            # A client that hangs up ends the request at Dynamo too.
            handler_cancellation=True,
            auto_decompress=False,
            shutdown_timeout=_LAST_BYTES_S,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=_BACKLOG).start()
            yield
        finally:
            await runner.cleanup()


class _Handler:
    def __init__(self, session: aiohttp.ClientSession, upstream: str, rules: Rules) -> None:
        self._session = session
        self._rules = rules
        self._max_body_bytes = rules.max_body_mib * 2**20
        self._upstream = upstream
        self._retry_after = str(rules.retry_after_s)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > self._max_body_bytes:
            return self._too_large()
        try:
            answer = await self._ask(request)
        except _TooLarge:
            return self._too_large()
        except _Refused as refused:
            return web.json_response(refused.args[0], status=400)
        except aiohttp.ClientConnectionError as error:
            if isinstance(error.__cause__, _TooLarge):
                return self._too_large()
            return self._unavailable()
        async with answer:
            return await self._pass_back(request, answer)

    async def _ask(self, request: web.Request) -> aiohttp.ClientResponse:
        """The answer of the server behind, as soon as it begins."""
        headers = _inward(request.headers)
        body: AsyncIterator[Any] | None = None
        if request.body_exists:
            body = self._bounded(request.content)
            api = self._rules.conversations.get(request.path)
            if api is not None:
                checked = await self._checked(body, api)
                headers[hdrs.CONTENT_LENGTH] = str(len(checked))
                body = _in_pieces(checked)
        return await self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        )

    async def _checked(self, body: AsyncIterator[bytes], api: Api) -> bytearray:
        """The whole body, if all of its content reaches the model. Raises `_Refused`."""
        held = bytearray()
        async for piece in body:
            held += piece
        complaint = api.complaint(held, self._rules.max_media_items)
        if complaint is not None:
            raise _Refused(api.refusal(complaint))
        return held

    async def _bounded(self, content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
        """The pieces of a body that may not say its size. Raises `_TooLarge`."""
        size = 0
        async for piece in content.iter_any():
            size += len(piece)
            if size > self._max_body_bytes:
                raise _TooLarge
            yield piece

    async def _pass_back(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = _end_to_end(answer.headers)
        if answer.status in RETRY_STATUSES:
            headers.setdefault(hdrs.RETRY_AFTER, self._retry_after)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)
        try:
            async for piece in answer.content.iter_any():
                await response.write(piece)
        except aiohttp.ClientPayloadError:
            # Half an answer must not look like a whole one.
            if request.transport is not None:
                request.transport.abort()
            return response
        await response.write_eof()
        return response

    def _too_large(self) -> web.Response:
        """What is left of the body is read and thrown away, so that the client reads this."""
        body = {
            "message": f"The request body exceeds the limit of {self._rules.max_body_mib} MB "
            "(DYN_HTTP_BODY_LIMIT_MB): send fewer or smaller images, or their URLs",
            "type": "Payload Too Large",
            "code": 413,
        }
        return web.json_response(body, status=413)

    def _unavailable(self) -> web.Response:
        """Dynamo's server is not up yet, or is about to end; in the form of its own errors."""
        body = {
            "message": "The frontend is not ready to serve requests",
            "type": "Service Unavailable",
            "code": 503,
        }
        return web.json_response(body, status=503, headers={hdrs.RETRY_AFTER: self._retry_after})


async def _in_pieces(body: bytearray) -> AsyncIterator[memoryview]:
    whole = memoryview(body)
    for start in range(0, len(whole), _PIECE_BYTES):
        yield whole[start : start + _PIECE_BYTES]


def _inward(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers for Dynamo. What a client calls its request stays a name for log lines."""
    kept = _end_to_end(headers)
    named = kept.popall(DYNAMO_REQUEST_ID, [])
    if named:
        kept.setdefault(REQUEST_ID, named[0])
    return kept


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The headers that are not for one connection alone."""
    kept = CIMultiDict(headers)
    named = ",".join(kept.getall(hdrs.CONNECTION, [])).lower()
    for name in _HOP_BY_HOP.union(part.strip() for part in named.split(",")):
        kept.popall(name, None)
    return kept


async def _without_server_name(_request: web.Request, response: web.StreamResponse) -> None:
    """aiohttp would name itself and its version; Dynamo names nothing."""
    response.headers.popall(hdrs.SERVER, None)
