# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A request that one worker prefills and another decodes (topology E/P/D).

The prefill worker says first where its KV can be fetched; then both work at the same time, and
the decode worker's answer is the request's. Each has a context of its own: what ends one of them,
an error or the client, ends the other, which would otherwise wait for KV for minutes.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import ProtocolError, Reason, Refused, TransferFailed
from dynamo.sglang_mm_resume.transport.rpc import PeerUnreachable, each_beside, merged
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.errors import is_draining, is_unavailable
from dynamo.sglang_mm_resume.workers.request import ROOMS_KEY, num_choices, one_choice

Chunk = dict[str, Any]

#: The component of decode workers: the name that Dynamo gives to them, and its planner looks for.
DECODE_COMPONENT = "backend"
#: SGLang's rooms are positive and signed.
ROOM_BITS = 63


class PrefillDecode:
    """Lets a prefill worker and a decode worker answer a request together."""

    def __init__(self, settings: Settings, prefill: Workers, decode: Workers) -> None:
        self.prefill = prefill
        self.decode = decode
        self._decode_workers = LeastOutstanding(
            decode.generate,
            decode.role,
            settings.max_requests,
            settings.bootstrap_timeout_s,
            decode.answers_ping,
        )

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a decode worker with room."""
        return self._decode_workers.num_waiting

    async def close(self) -> None:
        """End the probing of decode workers."""
        await self._decode_workers.close()

    async def chunks(
        self, request: dict[str, Any], prefill: int, context: Any
    ) -> AsyncGenerator[Chunk, None]:
        """The decode worker's chunks. An error of either worker ends both."""
        rooms = [secrets.randbits(ROOM_BITS) for _ in range(num_choices(request))]
        async with self._decode_workers.borrow() as decode:
            with _child(context, self.prefill.role) as prefill_context:
                named = {"bootstrap_info": {"bootstrap_room": rooms[0]}, ROOMS_KEY: rooms[1:]}
                source = await self.prefill.start(prefill, request | named, prefill_context)
                kv = await _named_kv(source, prefill)
                prefilling = asyncio.ensure_future(_finish(source, prefill))
                infos = [kv, *({**kv, "bootstrap_room": room} for room in rooms[1:])]
                parts = [one_choice(request) | {"bootstrap_info": info} for info in infos]
                answers = [self._answer(p, i, decode, context) for i, p in enumerate(parts)]
                together = answers[0] if len(answers) == 1 else merged(answers)
                try:
                    async with aclosing(together):
                        async for chunk in each_beside(together, prefilling):
                            yield chunk
                finally:  # also where a short answer ends before its prefill, which then stops
                    prefilling.cancel()
                    await asyncio.gather(prefilling, return_exceptions=True)

    async def _answer(
        self, request: dict[str, Any], index: int, decode: int, context: Any
    ) -> AsyncGenerator[Chunk, None]:
        """Of one choice, in a context of its own."""
        try:
            with _child(context, f"{self.decode.role}-{index}") as own:
                async for chunk in await self.decode.start(decode, request, own):
                    yield {**chunk, "index": index}
        except PeerUnreachable as error:  # the prefill worker is not to blame
            self._decode_workers.suspect(decode)
            raise TransferFailed(str(error)) from error
        except Exception as error:
            if is_draining(error):
                self._decode_workers.drains(decode)
                raise Refused(Reason.DRAINING, f"decode worker {decode} shuts down") from error
            if is_unavailable(error):
                self._decode_workers.avoid(decode)
            raise


async def _named_kv(source: AsyncIterator[Chunk], prefill: int) -> dict[str, Any]:
    """Host, port and room, which a prefill worker sends before its engine works."""
    first: Chunk = await anext(source, {})
    if not first.get("disaggregated_params"):
        raise ProtocolError(
            f"prefill worker {prefill} does not name its KV: with decode workers it is started "
            "with --disaggregation-mode prefill"
        )
    return dict(first["disaggregated_params"])


async def _finish(source: AsyncIterator[Chunk], prefill: int) -> None:
    """The rest of the prefill, which ends once the decode worker has its KV."""
    finished = False
    async for chunk in source:
        finished = finished or bool(chunk.get("engine_data"))
    if not finished:
        raise TransferFailed(f"prefill worker {prefill} gave up before its KV was fetched")


@contextmanager
def _child(context: Any, name: str) -> Iterator[Any]:
    """A context for one worker: it stops with the request's own, and when the block ends."""
    child = context.detached(tracing.call_id(f"{context.id()}-{name}"))
    ending = asyncio.ensure_future(context.async_killed_or_stopped())
    ending.add_done_callback(lambda _: child.stop_generating())
    try:
        yield child
    finally:
        ending.cancel()
        child.stop_generating()
