# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The relay in front of a real small server, and the arguments of the frontend."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import MAX_MEDIA_ITEMS
from dynamo.sglang_mm_resume.workers.relay import Rules, relay
from dynamo.sglang_mm_resume.workers.role import choose
from dynamo.sglang_mm_resume.workers.start_frontend import (
    CHECK_CONTENT,
    RETRY_AFTER,
    conversations,
    parse_options,
    relay_address,
    rules_of,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RETRY_AFTER_S = 7
DEADLINE_S = 10.0
MANY_BYTES = 32 * 2**20
"""Above what the sockets and the relay hold on the way."""
MAX_BODY_MIB = 40
RULES = Rules(RETRY_AFTER_S, MAX_BODY_MIB, 3, conversations({}))
CHAT_PATH = "/v1/chat/completions"
PIECE = b"x" * 2**16


@dataclass
class Front:
    """The relay's address and a client of it."""

    url: str
    client: aiohttp.ClientSession


@asynccontextmanager
async def relayed(handler: Handler | None) -> AsyncIterator[Front]:
    """A relay in front of a server that answers by `handler`; None: nobody listens there."""
    upstream_socket, listener = _bound(), _bound()
    server = web.Server(handler or _never, handler_cancellation=True, auto_decompress=False)
    runner = web.ServerRunner(server)
    await runner.setup()
    if handler is not None:
        await web.SockSite(runner, upstream_socket).start()
    front_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    upstream_url = f"http://127.0.0.1:{upstream_socket.getsockname()[1]}"
    try:
        async with (
            asyncio.timeout(DEADLINE_S),
            relay(listener, upstream_url, RULES),
            aiohttp.ClientSession(auto_decompress=False) as client,
        ):
            yield Front(front_url, client)
    finally:
        await runner.cleanup()
        upstream_socket.close()


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500, 503, 504, 529])
async def test_only_answers_that_mean_later_get_the_header(status: int) -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, text="body")

    async with relayed(handler) as front, front.client.get(front.url) as answer:
        assert answer.status == status
        assert await answer.text() == "body"
        expected = str(RETRY_AFTER_S) if status in (429, 503, 504, 529) else None
        assert answer.headers.get("Retry-After") == expected


async def test_a_header_that_is_there_stays() -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        return web.Response(status=503, headers={"retry-after": "99"})

    async with relayed(handler) as front, front.client.get(front.url) as answer:
        assert answer.headers.getall("Retry-After") == ["99"]


async def test_nobody_upstream() -> None:
    async with relayed(None) as front, front.client.post(front.url, data=b"{}") as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"] == str(RETRY_AFTER_S)
        body = await answer.json()
        assert body["code"] == 503
        assert body["message"]


async def test_a_body_that_is_too_large_gets_its_answer_and_goes_no_further() -> None:
    """Dynamo's server would close the connection while the body is sent, and often be unheard."""
    asked: list[web.BaseRequest] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        asked.append(request)
        return web.Response()

    async with relayed(handler) as front:
        for excess in (1, 2**20):
            body = bytes(MAX_BODY_MIB * 2**20 + excess)
            async with front.client.post(front.url, data=body) as answer:
                assert answer.status == 413
                assert f"limit of {MAX_BODY_MIB} MB" in (await answer.json())["message"]
        assert asked == []
        async with front.client.post(front.url, data=b"small") as answer:
            assert answer.status == 200


async def test_the_request_arrives_as_it_was_sent() -> None:
    seen: list[web.BaseRequest] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        return web.Response(text=(await request.read()).decode())

    path = "/v1/models/a%2fb%7E?q=%20x&q=+y"
    async with relayed(handler) as front:
        headers = {"X-Own": "1", "Connection": "X-Secret", "X-Secret": "2", "Content-Type": "a/b"}
        url = URL(front.url + path, encoded=True)
        async with front.client.request("PATCH", url, data=b"text", headers=headers) as answer:
            assert await answer.text() == "text"
    (request,) = seen
    assert (request.method, request.raw_path) == ("PATCH", path)
    assert request.headers["X-Own"] == "1"
    assert request.headers["Content-Type"] == "a/b"
    assert request.headers["Content-Length"] == "4"
    assert request.headers["Host"] == front.url.removeprefix("http://")
    assert "X-Secret" not in request.headers


async def test_the_answer_arrives_as_it_was_sent() -> None:
    async def handler(_request: web.BaseRequest) -> web.Response:
        response = web.Response(body=b"not really gzip", headers={"Content-Encoding": "gzip"})
        response.headers.add("X-Twice", "1")
        response.headers.add("X-Twice", "2")
        return response

    async with relayed(handler) as front, front.client.get(front.url) as answer:
        assert await answer.read() == b"not really gzip"
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers.getall("X-Twice") == ["1", "2"]
        assert answer.headers["Content-Length"] == "15"


async def test_events_pass_at_once() -> None:
    received = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            received.clear()
            await response.write(b"data: %d\n\n" % number)
            await received.wait()  # the next one only when this one has arrived
        return response

    async with relayed(handler) as front, front.client.get(front.url) as answer:
        for number in range(3):
            assert await answer.content.readany() == b"data: %d\n\n" % number
            received.set()
        assert await answer.content.read() == b""


@pytest.mark.parametrize("when", ["before-the-answer", "in-the-answer"])
async def test_hanging_up_reaches_upstream(when: str) -> None:
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        if when == "in-the-answer":
            await response.prepare(request)
            await response.write(b"first")
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return response

    async with relayed(handler) as front:
        asking = asyncio.create_task(_read(front))
        await arrived.wait()
        assert not cancelled.is_set()
        asking.cancel()
        await cancelled.wait()


async def test_an_answer_that_breaks_off_is_not_made_whole() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async with relayed(handler) as front:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
            await _read(front)


async def test_a_large_request_is_not_held() -> None:
    """The first piece arrives while the client has not sent the second."""
    received = asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.Response:
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
            received.set()
        return web.Response(text=str(size))

    async def body() -> AsyncIterator[bytes]:
        yield PIECE
        await received.wait()
        for _ in range(MANY_BYTES // len(PIECE) - 1):
            yield PIECE

    async with relayed(handler) as front, front.client.post(front.url, data=body()) as answer:
        assert int(await answer.text()) == MANY_BYTES


async def test_a_large_answer_is_not_held() -> None:
    """A client that does not read stops the sender; one that reads gets all."""
    sent = 0

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(MANY_BYTES // len(PIECE)):
            await response.write(PIECE)
            sent += len(PIECE)
        return response

    async with relayed(handler) as front, front.client.get(front.url) as answer:
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < MANY_BYTES
        assert len(await answer.read()) == MANY_BYTES


async def test_expect_is_answered() -> None:
    """Clients wait for it before they send a large body, curl for a second."""

    async def handler(request: web.BaseRequest) -> web.Response:
        assert "Expect" not in request.headers
        return web.Response(text=(await request.read()).decode())

    async with (
        relayed(handler) as front,
        front.client.post(front.url, data=b"text", expect100=True) as answer,
    ):
        assert await answer.text() == "text"


async def test_a_body_of_unknown_size_is_bounded_too() -> None:
    """Without `Content-Length`: nobody knows before it has come."""
    received = 0

    async def handler(request: web.BaseRequest) -> web.Response:
        nonlocal received
        async for piece in request.content.iter_any():
            received += len(piece)
        return web.Response()

    async def body(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // len(PIECE)):
            yield PIECE
        yield b"x" * (size % len(PIECE))

    async with relayed(handler) as front:
        for path in ("", CHAT_PATH):
            url, limit = front.url + path, MAX_BODY_MIB * 2**20
            async with front.client.post(url, data=body(limit + 1)) as answer:
                assert answer.status == 413
                assert "DYN_HTTP_BODY_LIMIT_MB" in (await answer.json())["message"]
            assert received <= limit
        async with front.client.post(front.url, data=body(limit)) as answer:
            assert answer.status == 200


async def test_a_client_s_request_id_names_nothing_behind_the_relay() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        found = {k.lower(): v for k, v in request.headers.items()}
        return web.json_response({k: found.get(k) for k in ("x-dynamo-request-id", "x-request-id")})

    cases = [
        ({"X-Dynamo-Request-Id": "a"}, "a"),
        ({"x-dynamo-request-id": "a", "X-Request-Id": "b"}, "b"),
        ({"X-Request-Id": "b"}, "b"),
        ({}, None),
    ]
    async with relayed(handler) as front:
        for headers, name in cases:
            async with front.client.get(front.url, headers=headers) as answer:
                found = await answer.json()
                assert found == {"x-dynamo-request-id": None, "x-request-id": name}


async def test_what_would_be_left_out_is_refused_and_goes_no_further() -> None:
    asked: list[bytes] = []

    async def handler(request: web.BaseRequest) -> web.Response:
        asked.append(await request.read())
        return web.Response()

    audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    async with relayed(handler) as front:
        async with front.client.post(front.url + CHAT_PATH, json=_chat(audio)) as answer:
            assert answer.status == 400
            body = await answer.json()
        assert body["code"] == 400
        assert "messages[0].content[0]" in body["message"]
        assert "'input_audio'" in body["message"]
        async with front.client.post(front.url + "/v1/messages", json=_chat(audio)) as answer:
            assert answer.status == 400
            assert "'input_audio'" in (await answer.json())["error"]["message"]
        assert asked == []
        # Elsewhere, and what reaches the model, it passes byte by byte.
        text = _chat({"type": "text", "text": "x" * 2**19})
        for path, sent in (("/v1/other", _chat(audio)), (CHAT_PATH, text)):
            async with front.client.post(front.url + path, json=sent) as answer:
                assert answer.status == 200
            assert json.loads(asked.pop()) == sent


async def test_a_compressed_body_is_not_touched() -> None:
    """Dynamo refuses it, and what nobody can read cannot be checked."""
    sent = gzip.compress(json.dumps(_chat({"type": "text", "text": "hi"})).encode())

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(body=await request.content.read())

    async with relayed(handler) as front:
        headers = {"Content-Encoding": "deflate"}
        async with front.client.post(front.url, data=sent, headers=headers) as answer:
            assert await answer.read() == sent
        headers = {"Content-Encoding": "gzip"}
        async with front.client.post(front.url + CHAT_PATH, data=sent, headers=headers) as answer:
            assert answer.status == 400


async def test_a_request_without_a_body_passes() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.method} {request.body_exists}")

    async with relayed(handler) as front, front.client.post(front.url + CHAT_PATH) as answer:
        assert await answer.text() == "POST False"


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    options, rest = parse_options(["--http-port", "1"])
    assert vars(options) == {"retry_after": 1, "check_content": True, "max_media_items": 64}
    assert rest == ["--http-port", "1"]
    monkeypatch.setenv(RETRY_AFTER.env, "3")
    monkeypatch.setenv(CHECK_CONTENT.env, "false")
    monkeypatch.setenv(MAX_MEDIA_ITEMS.env, "9")
    options, _ = parse_options([])
    assert vars(options) == {"retry_after": 3, "check_content": False, "max_media_items": 9}
    options, rest = parse_options(["--retry-after=5", "--check-content", "-i"])
    assert (options.retry_after, options.check_content, rest) == (5, True, ["-i"])


def test_help_names_every_status_that_gets_the_header() -> None:
    assert RETRY_AFTER.text.endswith("429, 503, 504, 529.")


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "86401"])
def test_a_wrong_retry_after_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in ([f"--retry-after={value}"], []):
        monkeypatch.setenv(RETRY_AFTER.env, value)
        with pytest.raises(BadArgument, match=r"--retry-after.*RETRY_AFTER_S"):
            parse_options(argv)


@pytest.mark.parametrize(
    ("env", "value"), [(CHECK_CONTENT.env, "perhaps"), (MAX_MEDIA_ITEMS.env, "0")]
)
def test_a_wrong_option_is_refused(env: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(env, value)
    with pytest.raises(BadArgument, match=env):
        parse_options([])


def test_conversations_are_where_dynamo_serves_them() -> None:
    moved = conversations({"DYN_HTTP_SVC_CHAT_PATH": "/chat"})
    assert "/chat" in moved
    assert CHAT_PATH not in moved
    unchecked, _ = parse_options(["--no-check-content"])
    assert rules_of(unchecked).conversations == {}
    checked, _ = parse_options([])
    assert CHAT_PATH in rules_of(checked).conversations


def test_the_address_is_dynamos(monkeypatch: pytest.MonkeyPatch) -> None:
    assert relay_address([]) == ("0.0.0.0", 8000)
    monkeypatch.setenv("DYN_HTTP_PORT", "81")
    monkeypatch.setenv("DYN_HTTP_HOST", "::")
    assert relay_address(["--migration-limit", "3"]) == ("::", 81)
    assert relay_address(["--http-port", "82", "--http-host=localhost"]) == ("localhost", 82)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--tls-cert-path", "a", "--tls-key-path", "b"], "--tls-cert-path"),
        (["--interactive"], "--interactive"),
        (["--kserve-grpc-server"], "--kserve-grpc-server"),
    ],
)
def test_what_cannot_be_relayed_is_refused(argv: list[str], says: str) -> None:
    with pytest.raises(BadArgument, match=says):
        relay_address(argv)


def test_the_role() -> None:
    assert choose(["--role", "frontend", "-x"], {}) == ("frontend", ["-x"])


def _bound() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


async def _never(_request: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError("nobody listens")


async def _read(front: Front) -> bytes:
    async with front.client.get(front.url) as answer:
        return await answer.read()


def _chat(part: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": [part]}]}
