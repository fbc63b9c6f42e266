# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Asks all workers for their status, at the same time, and waits for none of them for long.

Workers are found as they find each other, through Dynamo's discovery, or their system ports are
given. Either way the answer is the same JSON object.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from dynamo.sglang_mm_resume.doctor.graph import COMPONENTS
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT

#: Bytes of an answer at most; one with hundreds of transfers has some ten thousand.
MAX_BYTES: Final = 4 * 2**20
_ROUTE: Final = "/engine/mm_resume/status"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker said, unread; or `error`: why it did not. `name` is the same in every look."""

    name: str
    said: Any = None
    error: str = ""


class Source(Protocol):
    """A way to the workers."""

    async def look(self) -> Sequence[Answer]:
        """Ask everybody; returns within the time limit."""

    async def close(self) -> None: ...


class SystemPorts:
    """Workers whose system ports are given, as URLs without a path. Named by host and port."""

    def __init__(self, urls: Sequence[str], limit_s: float) -> None:
        """`limit_s`: for one worker to answer, the connection included."""
        self._urls = urls
        self._limit_s = limit_s
        # What is inside a cluster is not looked for through a proxy: aiohttp's default.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit_s))

    async def look(self) -> Sequence[Answer]:
        return await asyncio.gather(*(self._ask(url) for url in self._urls))

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, url: str) -> Answer:
        name = urlsplit(url).netloc
        try:
            async with self._session.post(url + _ROUTE, json={}) as response:
                if response.status != 200:
                    return Answer(name, error=_refused(response.status))
                return Answer(name, json.loads(await _body(response)))
        except TimeoutError:
            return Answer(name, error=f"no answer in {self._limit_s:g} s")
        except aiohttp.ClientError as error:
            return Answer(name, error=f"cannot be reached: {error}")
        except ValueError as error:
            return Answer(name, error=f"its answer cannot be read: {error}")


class Discovered:
    """Workers that discovery lists in one namespace. Named by role and instance id (hex)."""

    def __init__(self, clients: Mapping[str, Any], limit_s: float) -> None:
        """`clients`: by role, of the endpoints that tell the status."""
        self._clients = clients
        self._limit_s = limit_s

    @classmethod
    async def connect(cls, runtime: Any, namespace: str, limit_s: float) -> Self:
        """Listen to discovery; who is there is known a moment later."""
        clients = {
            role: await runtime.endpoint(f"{namespace}.{component}.{STATUS_ENDPOINT}").client()
            for role, component in COMPONENTS.items()
        }
        return cls(clients, limit_s)

    async def settled(self, limit_s: float) -> None:
        """Return once somebody is listed, and a moment later; or after the limit."""
        waits = [asyncio.ensure_future(c.wait_for_instances()) for c in self._clients.values()]
        done, _ = await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if done:  # the others of the graph are in the same list
            await asyncio.wait(waits, timeout=self._limit_s / 4)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    async def look(self) -> Sequence[Answer]:
        asked = [
            self._ask(role, client, instance_id)
            for role, client in self._clients.items()
            for instance_id in sorted(client.instance_ids())
        ]
        return await asyncio.gather(*asked)

    async def close(self) -> None:
        """Nothing is held: the runtime is its owner's."""

    async def _ask(self, role: str, client: Any, instance_id: int) -> Answer:
        name = f"{role} {instance_id:x}"
        try:
            async with asyncio.timeout(self._limit_s):
                stream = await client.direct({}, instance_id, annotated=False)
                return Answer(name, await anext(aiter(stream)))
        except TimeoutError:
            return Answer(name, error=f"no answer in {self._limit_s:g} s")
        except Exception as error:  # Dynamo's client raises builtin types for lost peers
            return Answer(name, error=f"cannot be asked: {error or type(error).__name__}")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """All of it. Raises ValueError if that is too much for a worker's status."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
    return bytes(body)


def _refused(status: int) -> str:
    if status == 404:
        return "not the system port of a worker (its DYN_SYSTEM_PORT): it answers 404"
    return f"it answers {status}"
