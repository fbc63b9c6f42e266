# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A process of Dynamo's own runtime that does nothing but keep an endpoint listed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from dynamo.common.utils.graceful_shutdown import install_signal_handlers
from dynamo.common.utils.runtime import create_runtime

from dynamo.sglang_mm_resume.workers.lifecycle import serve
from dynamo.sglang_mm_resume.workers.presence import Presence

LOOK_EVERY_S = 0.2


async def answer(request: Any) -> AsyncIterator[Any]:
    """Nobody asks."""
    yield request


async def nothing() -> None:
    """Stands for the registration, and for that of a model card."""


async def main() -> None:
    """Serve until killed, until a signal ends it, or until nothing can be listed."""
    backend = os.environ.get("DYN_DISCOVERY_BACKEND", "file")
    runtime, loop = create_runtime(
        discovery_backend=backend, request_plane="tcp", event_plane="zmq", response_plane="tcp"
    )
    endpoint = runtime.endpoint("test.worker.generate")
    presence = Presence(endpoint, backend=backend, look_every_s=LOOK_EVERY_S)
    shutdown = asyncio.Event()
    install_signal_handlers(loop, runtime, presence.listings, shutdown, grace_period_s=0)
    registered = presence.keep(nothing, nothing)
    await serve([endpoint.serve_endpoint(answer)], registered, shutdown)


if __name__ == "__main__":
    uvloop.run(main())
