# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--processor URL`: the graph to examine is that of the processor whose system port this is."""

import asyncio
import json
from typing import Final
from urllib.parse import urlsplit

import aiohttp

#: Seconds for a processor to answer.
LIMIT_S: Final = 5.0
#: Bytes of its answer at most; a whole one has a few thousand.
MAX_BYTES: Final = 2**20
_ROUTE: Final = "/engine/mm_resume/status"


class NotReached(Exception):
    """Nobody answers at that address."""


def base_url(text: str) -> str:
    """`host:port` or `http://host:port` as a URL. Raises ValueError saying what is wrong."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{text!r}: http:// or https:// is expected, not {parts.scheme}://")
    if not parts.hostname or parts.port is None:  # the port raises ValueError where it is none
        raise ValueError(f"{text!r}: host and port are expected, such as 10.0.0.7:8081")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r}: nothing is expected behind the port")
    return f"{parts.scheme}://{parts.netloc}"


async def namespace_of(url: str, limit_s: float = LIMIT_S) -> str:
    """The namespace of the processor at `url`.

    Raises `NotReached`, or ValueError where it is somebody else who answers.
    """
    other = f"{url} is not the system port of a processor (its DYN_SYSTEM_PORT)"
    try:
        async with asyncio.timeout(limit_s):
            code, body = await _get(url + _ROUTE)
    except TimeoutError:
        raise NotReached(f"{url} does not answer within {limit_s:g} s") from None
    except (aiohttp.ClientConnectorError, OSError) as error:
        raise NotReached(f"{url} cannot be reached: {error}") from error
    except aiohttp.ClientError as error:
        raise ValueError(f"{other}: {error!r:.200}") from None
    if code != 200:
        raise ValueError(f"{other}: it answers {code}")
    try:
        status = json.loads(body)
    except ValueError:
        raise ValueError(f"{other}: its answer is no JSON") from None
    role = status.get("role") if isinstance(status, dict) else None
    if role != "processor":
        raise ValueError(f"{other}: {f'its role is {role}' if role else 'it names no role'}")
    namespace = status.get("namespace")
    if not isinstance(namespace, str) or not namespace:
        raise ValueError(f"{url} names no namespace: its processor is of another release")
    return namespace


async def _get(url: str) -> tuple[int, bytes]:
    """Status and body, of which no more is read than a status can have. Goes through no proxy."""
    body = b""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BYTES:
                break
        return response.status, body
