# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A peer that says and writes whatever it is told, right or wrong.

    python -m tests.support.rogue_peer  # in the environment of a running stack

It joins discovery with Dynamo's own client and has real NIXL agents. Commands come as lines of
JSON on stdin, each a list of a method of `Peer` and its arguments; one line of JSON answers each.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, TextIO

import torch
import uvloop

from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.messages import PREFILL_REPLY, Hello, Welcome, dump, parse
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, Write

NUM_BLOCKS = 4
DEADLINE_S = 30.0
CONTROL = "prefill.mm_transfer"


class Peer:
    """What the commands do. Everything that a worker answers is passed on as it is."""

    def __init__(self, runtime: Any, namespace: str) -> None:
        self._runtime = runtime
        self._namespace = namespace
        self._clients: dict[str, Any] = {}
        self._agents: dict[str, tuple[NixlAgent, PoolMemory]] = {}
        self._calls: list[tuple[Any, asyncio.Task[dict[str, Any]]]] = []

    async def instances(self, endpoint: str) -> list[int]:
        """Ids of the instances of `component.endpoint`, as soon as there is one."""
        client = await self._client(endpoint)
        return sorted(await client.wait_for_instances())

    async def call(self, endpoint: str, instance: int, payload: Any) -> dict[str, Any]:
        """Everything that comes back, and the error that ends it, if one does."""
        return await self._collect(endpoint, instance, payload, None)

    async def begin(self, endpoint: str, instance: int, payload: Any, count: int) -> int:
        """Calls that go on meanwhile; `{n}` in `payload` counts them. Returns the first number."""
        from dynamo.runtime import Context

        first = len(self._calls)
        for number in range(count):
            context = Context()
            own = json.loads(json.dumps(payload).replace("{n}", str(number)))
            call = self._collect(endpoint, instance, own, context)
            self._calls.append((context, asyncio.ensure_future(call)))
        return first

    async def end(self, number: int) -> dict[str, Any]:
        """What a call that was begun has brought, once it is over."""
        return await self._calls[number][1]

    async def ended(self) -> list[dict[str, Any]]:
        """What all the calls have brought that are over."""
        return [task.result() for _, task in self._calls if task.done()]

    async def hang_up(self) -> None:
        """Stop every call that was begun."""
        for context, _ in self._calls:
            context.stop_generating()
        await asyncio.gather(*(task for _, task in self._calls))
        self._calls.clear()

    async def connect(self, name: str, instance: int, layout: dict[str, Any], hello: str) -> str:
        """A NIXL agent `name` that can write to a prefill worker, which knows it as `hello`."""
        own = Layout.model_validate(layout)
        if name not in self._agents:
            memory = PoolMemory(own, NUM_BLOCKS, torch.device("cpu"))
            agent = NixlAgent(name, memory, lambda peer, payload: None)
            await agent.start()
            self._agents[name] = (agent, memory)
        message = Hello(layout=own, instance_id=1, agent=hello)
        client = await self._client(CONTROL)
        stream = await client.direct(dump(message), instance, annotated=False)
        welcome = parse(PREFILL_REPLY, await anext(aiter(stream)))
        assert isinstance(welcome, Welcome), welcome
        await self._agents[name][0].connect(welcome)
        return welcome.agent

    async def write(
        self, name: str, receiver: str, blocks: list[int], element: float, notice: str
    ) -> None:
        """Fill blocks of a receiver's pool; `notice` goes with the last byte of it."""
        agent, memory = self._agents[name]
        own = list(range(len(blocks)))
        memory.tensor[own] = element
        deadline = time.monotonic() + DEADLINE_S
        await agent.write(receiver, Write(own, blocks, notice.encode(), deadline))

    async def _client(self, endpoint: str) -> Any:
        if endpoint not in self._clients:
            path = f"{self._namespace}.{endpoint}"
            self._clients[endpoint] = await self._runtime.endpoint(path).client()
        return self._clients[endpoint]

    async def _collect(
        self, endpoint: str, instance: int, payload: Any, context: Any
    ) -> dict[str, Any]:
        answers: list[Any] = []
        client = await self._client(endpoint)
        try:
            options = {"annotated": False} | ({"context": context} if context else {})
            async for answer in await client.direct(payload, instance, **options):
                answers.append(answer)
        except Exception as error:  # Dynamo's client raises builtin types
            return {"answers": answers, "error": f"{type(error).__name__}: {error}"}
        return {"answers": answers, "error": None}


async def serve(answers: TextIO) -> None:
    """Answer each command in turn, until there are no more."""
    from dynamo.common.utils.runtime import create_runtime

    env = os.environ
    runtime, loop = create_runtime(
        discovery_backend=env["DYN_DISCOVERY_BACKEND"],
        request_plane=env["DYN_REQUEST_PLANE"],
        event_plane=env["DYN_EVENT_PLANE"],
    )
    peer = Peer(runtime, env["DYN_NAMESPACE"])
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        method, *arguments = json.loads(line)
        try:
            answer = {"result": await getattr(peer, method)(*arguments)}
        except Exception as error:  # the test is to see it
            answer = {"raised": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=repr), file=answers, flush=True)


if __name__ == "__main__":
    # Whatever libraries print must not come between the answers.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    uvloop.run(serve(channel))
