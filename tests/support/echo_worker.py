# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A worker without an engine, which writes down what reaches it: `echo_worker.py MODEL NAME FILE`.

One line of JSON per request: its id, the token ids, and how many items of each kind.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.common.utils.runtime import create_runtime
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model


async def main(model_path: str, name: str, file: str) -> None:
    """Serve until a signal."""

    async def generate(request: dict[str, Any], context: Any) -> AsyncIterator[dict[str, Any]]:
        media = {kind: len(v) for kind, v in (request.get("multi_modal_data") or {}).items()}
        seen = {"id": context.id(), "token_ids": request["token_ids"], "media": media}
        with open(file, "a") as out:
            out.write(json.dumps(seen) + "\n")
        yield {"token_ids": [71], "finish_reason": "stop"}

    runtime, _loop = create_runtime(
        discovery_backend="file", request_plane="tcp", event_plane="zmq"
    )
    endpoint = runtime.endpoint("dynamo.echo.generate")

    async def register() -> None:
        surface = ModelType.Chat | ModelType.Completions
        await register_model(
            ModelInput.Tokens,
            surface,
            endpoint,
            model_path,
            name,
            worker_type=WorkerType.Aggregated,
        )

    await asyncio.gather(endpoint.serve_endpoint(generate), register())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
