# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`deploy/edge/nginx.conf` in a real nginx, in front of a small server that says what it gets."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dynamo.sglang_mm_resume.workers.limits import DEFAULT_BODY_MIB
from examples.local_stack import free_ports

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
CONF = Path(__file__).parent.parent.parent / "deploy" / "edge" / "nginx.conf"
DEADLINE_S = 10.0

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs Debian's package nginx")


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[str]:
    """The URL of nginx. Behind it, `/status/N` has that status, `/events` waits for the client."""
    front, back = free_ports(2)
    conf = CONF.read_text().replace("listen 8080", f"listen 127.0.0.1:{front}")
    conf = conf.replace("127.0.0.1:8000", f"127.0.0.1:{back}")
    main = tmp_path / "main.conf"
    temps = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # its temporary files are in our folder
    main.write_text(
        f"{user} daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off;\n{temps}\n{conf} }}\n"
    )
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", _answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=DEADLINE_S)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", back).start()
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", str(main), "-p", str(tmp_path), "-e", "stderr"])
    try:
        await _until_it_listens(front)
        yield f"http://127.0.0.1:{front}"
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        await runner.cleanup()


async def test_a_client_names_and_steers_nothing(edge: str) -> None:
    steering = ["X-Dynamo-Request-Priority", "X-Worker-Instance-Id", "X-Dynamo-Worker-Instance-Id"]
    async with aiohttp.ClientSession() as client:
        for given, name in (
            ({"x-dynamo-request-id": "a"}, "a"),
            ({"x-dynamo-request-id": "a", "x-request-id": "b"}, "b"),
            ({}, None),
        ):
            headers = {**given, **dict.fromkeys(steering, "1")}
            async with client.get(edge, headers=headers) as answer:
                seen = await answer.json()
            assert seen["headers"].get("x-request-id") == name
            assert not {key for key in seen["headers"] if key.startswith("x-")} - {"x-request-id"}


async def test_later_says_when(edge: str) -> None:
    async with aiohttp.ClientSession() as client:
        for path, expected in (
            ("/status/200", []),
            ("/status/400", []),
            ("/status/503", ["1"]),
            ("/status/429", ["1"]),
            ("/status/503?retry-after=9", ["9"]),
        ):
            async with client.get(edge + path) as answer:
                assert answer.headers.getall("Retry-After", []) == expected, path


async def test_bodies_up_to_the_limit_pass(edge: str) -> None:
    limit = DEFAULT_BODY_MIB * 2**20

    async def chunked(size: int) -> AsyncIterator[bytes]:
        for start in range(0, size, 2**20):
            yield bytes(min(2**20, size - start))

    async with aiohttp.ClientSession() as client:
        async with client.post(edge, data=chunked(limit)) as answer:
            assert (await answer.json())["bytes"] == limit
        async with client.post(edge, data=chunked(limit + 1)) as answer:
            assert answer.status == 413
            assert "45 MB" in (await answer.json())["message"]


async def test_events_pass_one_by_one(edge: str) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"{edge}/events") as answer:
        assert await asyncio.wait_for(answer.content.readline(), DEADLINE_S) == b"data: 1\n"
        answer.close()  # the server would wait for ever


async def _answer(request: web.Request) -> web.StreamResponse:
    if request.path.startswith("/status/"):
        after = request.query.get("retry-after")
        headers = {"Retry-After": after} if after else {}
        return web.Response(status=int(request.path.rpartition("/")[2]), headers=headers)
    if request.path == "/events":
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n")
        await asyncio.Event().wait()
    size = 0
    async for piece in request.content.iter_any():
        size += len(piece)
    headers = {key.lower(): value for key, value in request.headers.items()}
    return web.json_response({"headers": headers, "bytes": size})


async def _until_it_listens(port: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
