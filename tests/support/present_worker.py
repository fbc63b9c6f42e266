# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A process of Dynamo's own runtime that does nothing but keep an endpoint listed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import uvloop
from dynamo.common.utils.runtime import create_runtime

from dynamo.sglang_mm_resume.workers.lifecycle import serve
from dynamo.sglang_mm_resume.workers.presence import Presence

LOOK_EVERY_S = 0.1


async def answer(request: Any) -> AsyncIterator[Any]:
    """Nobody asks."""
    yield request


async def nothing() -> None:
    """Stands for the registration, and for that of a model card."""


async def main() -> None:
    """Serve until killed, or until nothing can be listed."""
    runtime, _ = create_runtime(
        discovery_backend="file", request_plane="tcp", event_plane="zmq", response_plane="tcp"
    )
    endpoint = runtime.endpoint("test.worker.generate")
    presence = Presence(endpoint, look_every_s=LOOK_EVERY_S)
    await serve([endpoint.serve_endpoint(answer)], presence.keep(nothing, nothing))


if __name__ == "__main__":
    uvloop.run(main())
