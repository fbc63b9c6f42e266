# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One message, one answer over a Dynamo endpoint; never without a deadline."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.errors import ResumeError, TransferFailed
from dynamo.sglang_mm_resume.core.messages import (
    ENCODE_CONTROL_REPLY,
    Message,
    Ping,
    Refusal,
    dump,
    parse,
    version_to_repeat_in,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PeerUnreachable(TransferFailed):
    """A control message got no answer: the peer is gone, hangs, or broke while answering."""


class Client(Protocol):
    """What is used of `dynamo.runtime.Client`."""

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = ..., context: Any = ...
    ) -> Any: ...

    def instance_ids(self) -> list[int]: ...


@asynccontextmanager
async def within(limit_s: float, silence: str) -> AsyncIterator[None]:
    """Raises `PeerUnreachable(silence)` if the block takes longer than `limit_s`.

    A `TimeoutError` that the block raises by itself is passed on: it is an answer, not silence.
    """
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise PeerUnreachable(silence) from None


async def each_within(limit_s: float, stream: AsyncIterator[T]) -> AsyncIterator[T]:
    """The items of `stream`. Raises `PeerUnreachable` if one takes longer than `limit_s`."""
    iterator = aiter(stream)
    while True:
        try:
            async with within(limit_s, f"nothing was heard for {limit_s:g} s"):
                item = await anext(iterator)
        except StopAsyncIteration:
            return
        yield item


async def each_while(
    stream: AsyncIterator[T], every_s: float, probe: Callable[[], Awaitable[None]]
) -> AsyncIterator[T]:
    """The items of `stream`, however long they take, while `probe` does not raise.

    It is asked whenever nothing came for `every_s` seconds: a busy peer may be silent for long, a
    dead or hung one must not be waited for. An item costs no task: there may be thousands a second.
    """
    iterator = aiter(stream)
    silence = _Silence(every_s, probe)
    watching = asyncio.ensure_future(silence.watch())
    try:
        while True:
            try:
                async with silence.unless_too_long():
                    item = await anext(iterator)
            except StopAsyncIteration:
                return
            yield item
    finally:
        watching.cancel()


class _Silence:
    """How long a stream has been waited for, and whether that is too long."""

    def __init__(self, every_s: float, probe: Callable[[], Awaitable[None]]) -> None:
        self._every_s = every_s
        self._probe = probe
        self._wait: asyncio.Timeout | None = None  # while somebody waits
        self._quiet_since = 0.0  # the beginning of the wait, or the last probe in it
        self._error: Exception | None = None

    @asynccontextmanager
    async def unless_too_long(self) -> AsyncIterator[None]:
        """Ends the wait in it with what `probe` raised."""
        self._quiet_since = time.monotonic()
        try:
            async with asyncio.timeout(None) as self._wait:
                yield
        except TimeoutError:
            if self._error is None:
                raise
            raise self._error from None
        finally:
            self._wait = None

    async def watch(self) -> None:
        """Probe whenever the wait has been long; ends it, and itself, once a probe raises."""
        while self._error is None:
            wait = self._wait
            quiet_s = time.monotonic() - self._quiet_since if wait else 0.0
            if wait is None or quiet_s < self._every_s:
                await asyncio.sleep(self._every_s - quiet_s)
                continue
            try:
                await self._probe()
            except Exception as error:
                if wait is self._wait:  # else something was heard meanwhile
                    self._error = error
                    wait.reschedule(asyncio.get_running_loop().time())
            self._quiet_since = time.monotonic()


async def each_beside(stream: AsyncIterator[T], work: "asyncio.Task[Any]") -> AsyncIterator[T]:
    """The items of `stream`, unless `work` raises meanwhile: then that, at once."""
    iterator = aiter(stream)
    while True:
        item = asyncio.ensure_future(_next_of(iterator))
        try:
            if not work.done():
                await asyncio.wait((item, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            found = await item
        finally:
            if not item.done():
                item.cancel()
                await asyncio.gather(item, return_exceptions=True)  # its clean-up comes first
        if not found:
            return
        yield found[0]


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of several streams as they come. What one of them raises ends all, at once."""
    queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(len(streams))

    async def forward(stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await queue.put((item,))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.ensure_future(forward(stream)) for stream in streams]
    unfinished = len(tasks)
    try:
        while unfinished:
            match await queue.get():
                case None:
                    unfinished -= 1
                case Exception() as error:
                    raise error
                case (item,):
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class ProbeTotals:
    """Probes of the workers of one role since the start, for /metrics."""

    answered: int = 0
    failed: int = 0


async def ping(client: "Client", instance_id: int, timeout_s: float, totals: ProbeTotals) -> None:
    """Return once the instance has answered. Raises what `ask` raises."""
    try:
        await ask(client, instance_id, Ping(), ENCODE_CONTROL_REPLY, timeout_s)
    except ResumeError:
        totals.failed += 1
        raise
    totals.answered += 1


def heartbeat(
    client: "Client",
    instance_id: int,
    who: str,
    interval_s: float,
    max_failures: int,
    totals: ProbeTotals,
) -> Callable[[], Awaitable[None]]:
    """A probe for `each_while`, for one wait: raises `PeerUnreachable` once too many failed in a
    row.
    """
    failures = 0

    async def probe() -> None:
        nonlocal failures
        try:
            await ping(client, instance_id, interval_s, totals)
            failures = 0
        except ResumeError as error:
            failures += 1
            logger.warning("%s %s failed a probe: %s", who, instance_id, error)
            if failures >= max_failures:
                raise PeerUnreachable(f"{who} {instance_id} is dead: {error}") from error

    return probe


async def _next_of(iterator: AsyncIterator[T]) -> tuple[T] | tuple[()]:
    """The next item, or nothing at the end (a task cannot end with `StopAsyncIteration`)."""
    try:
        return (await anext(iterator),)
    except StopAsyncIteration:
        return ()


async def ask(
    client: Client, instance_id: int, message: Message, answers: TypeAdapter[T], timeout_s: float
) -> T:
    """Send `message` to one instance and return its answer.

    Raises `PeerUnreachable`, `Refused` (what the peer answered) or `ProtocolError`.
    """
    payload = await _exchange(client, instance_id, dump(message), timeout_s)
    answer = parse(answers, payload)
    version = version_to_repeat_in(answer)
    if version is not None:
        payload = await _exchange(client, instance_id, dump(message, version), timeout_s)
        answer = parse(answers, payload)
    if isinstance(answer, Refusal):
        raise answer.as_error()
    return answer


async def _exchange(
    client: Client, instance_id: int, payload: dict[str, Any], timeout_s: float
) -> Any:
    context = tracing.call_context()
    try:
        async with within(timeout_s, f"instance {instance_id}: no answer in {timeout_s:g} s"):
            stream = await client.direct(payload, instance_id, annotated=False, context=context)
            return await anext(aiter(stream))
    except PeerUnreachable:
        raise
    except StopAsyncIteration:
        raise PeerUnreachable(f"instance {instance_id} ended without an answer") from None
    except Exception as error:  # Dynamo's client raises builtin types for lost peers
        raise PeerUnreachable(f"instance {instance_id}: {error}") from error
