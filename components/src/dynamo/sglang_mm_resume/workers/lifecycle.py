# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What all workers share: waiting for a request's end, admission, and shutting down in order."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from dynamo.common.utils.runtime import create_runtime

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.core.errors import SHUTS_DOWN, Reason, Refused
from dynamo.sglang_mm_resume.transport.tasks import unless

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RequestStopped(Exception):
    """The client hung up, or the request was cancelled; nobody reads the answer any more."""


class WorkerLost(RuntimeError):
    """This worker cannot go on, and nobody has asked it to end: to be started again."""


class RequestContext(Protocol):
    """What is used of `dynamo.runtime.Context`."""

    def is_stopped(self) -> bool: ...

    def async_killed_or_stopped(self) -> "asyncio.Future[bool]": ...


async def until_stopped(context: RequestContext, work: Awaitable[T]) -> T:
    """What `work` returns. Raises `RequestStopped`, and cancels it, once the request stops."""
    return await unless(context.async_killed_or_stopped(), work, RequestStopped)


def runtime_of(arguments: Any) -> tuple[Any, asyncio.AbstractEventLoop]:
    """Dynamo's runtime by its own arguments, and the running loop."""
    return create_runtime(
        discovery_backend=arguments.discovery_backend,
        request_plane=arguments.request_plane,
        event_plane=arguments.event_plane,
        response_plane=arguments.response_plane,
    )


@contextmanager
def argument_errors() -> Iterator[None]:
    """Dynamo's and SGLang's own checks of their arguments raise `BadArgument`."""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("arguments refused", exc_info=error)
        raise BadArgument(str(error)) from error


class Admission:
    """Work that a worker has accepted; once it shuts down, it accepts no more."""

    def __init__(self) -> None:
        self._accepted = 0
        self._leaving = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def accepted(self) -> int:
        return self._accepted

    def require_open(self) -> None:
        """Raises `Refused` once the worker shuts down: another one will do it."""
        if self._leaving:
            raise Refused(Reason.DRAINING, SHUTS_DOWN)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Counts a piece of work until the block ends."""
        self._accepted += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._accepted -= 1
            if not self._accepted:
                self._idle.set()

    def leave(self) -> None:
        """Accept nothing new from now on."""
        self._leaving = True

    async def idle(self) -> None:
        """Return once no work is under way."""
        await self._idle.wait()


class DrainFirst:
    """Stands for endpoints in a list that a graceful shutdown takes out of discovery: lets the work
    under way end before. Dynamo's clients break off the streams of an instance that is gone from
    there, and SGLang's variant of the shutdown has no other callback.
    """

    def __init__(self, drain: Callable[[], Awaitable[None]], endpoints: Iterable[Any]) -> None:
        self._drain = drain
        self._endpoints = list(endpoints)

    async def unregister_endpoint_instance(self) -> None:
        """The name that Dynamo calls."""
        await self._drain()
        leaving = (endpoint.unregister_endpoint_instance() for endpoint in self._endpoints)
        await asyncio.gather(*leaving, return_exceptions=True)


async def serve(
    endpoints: Iterable[Awaitable[Any]], registration: Awaitable[Any], shutdown: asyncio.Event
) -> None:
    """Serve until all endpoints have stopped; register meanwhile, unless that comes too late.

    The registration may last as long as the serving (`Presence.keep`). If it fails, serving ends.
    `shutdown` is what Dynamo sets before it stops the endpoints for a signal. Raises WorkerLost
    where they stop without it.
    """
    serving = asyncio.gather(*endpoints)
    registering = asyncio.ensure_future(registration)
    try:
        await asyncio.wait((serving, registering), return_when=asyncio.FIRST_COMPLETED)
        if registering.done():
            registering.result()
        await serving
    finally:
        serving.cancel()
        registering.cancel()
        await asyncio.gather(serving, registering, return_exceptions=True)
    if not shutdown.is_set():
        # What Dynamo's runtime does with its lease in etcd gone: it could register nothing more.
        raise WorkerLost("Dynamo's runtime has ended: the lease in discovery is lost, start again")


def serve_status(runtime: Any, status: Callable[[], dict[str, Any]]) -> None:
    """`POST /engine/mm_resume/status` on the system port: pool, transfers and tasks, as JSON."""

    async def route(_: dict[str, Any]) -> dict[str, Any]:
        return status()

    runtime.register_engine_route("mm_resume/status", route)


async def wait_for_role(client: Any, role: str, every_s: float = 10.0) -> None:
    """Return once an instance of `role` is alive; say now and then that it is waited for."""
    waiting = asyncio.ensure_future(client.wait_for_instances())
    try:
        while not (await asyncio.wait({waiting}, timeout=every_s))[0]:
            logger.info("waiting for %s worker", role)
        waiting.result()
    finally:
        waiting.cancel()
