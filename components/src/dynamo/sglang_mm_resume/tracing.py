# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""For which request a piece of work is done: its id in every log line, its spans in one trace.

`serving` wraps the handler of an endpoint. All that the handler does then knows its request: tasks
that asyncio starts from it, and threads that get work by `in_thread` (transport/tasks.py). A call
to another worker takes the request along in the metadata of Dynamo's context, not in our messages:
the id is the same there, and spans of that worker are part of ours.

Spans go where Dynamo's own go (OTEL_EXPORT_ENABLED, and the standard OTEL_* variables), and cost
nothing where those are off. Dynamo's `Context.start_span` cannot make them: it does nothing in the
handlers of `serve_endpoint`, which Dynamo 1.6 gives no span.
"""

import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Protocol, Self

from dynamo.sglang_mm_resume.core.histogram import Histogram

logger = logging.getLogger(__name__)

#: What the names of our spans begin with.
PREFIX: Final = "mm_resume."
#: Where Dynamo's context names the request that a call is for. Its own id is the call's: of two
#: calls of one id at the same time, Dynamo 1.6 breaks one off.
REQUEST_KEY: Final = "mm-resume-request-id"
#: Where it names the span of ours that the call is part of. The `traceparent` that it carries by
#: itself is that of Dynamo's span around our handler.
PARENT_KEY: Final = "mm-resume-traceparent"

_ENABLED_ENV: Final = "OTEL_EXPORT_ENABLED"
_TRUE: Final = frozenset({"1", "true", "on", "yes"})
_PROTOCOL_ENVS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: Protocols to OpenTelemetry's exporters. Dynamo takes the first where none is named.
_EXPORTERS: Final = {"grpc": "grpc", "http/protobuf": "http"}
_SERVICE_ENV: Final = "OTEL_SERVICE_NAME"
_SERVICE: Final = "dynamo"

#: Ids are Dynamo's, but may come from any peer: they end in log files.
_NOT_IN_IDS: Final = re.compile(r"[^0-9A-Za-z_.:-]")
_MAX_ID_CHARS: Final = 80

Handler = Callable[[Any, Any], AsyncGenerator[Any, None]]


class CallContext(Protocol):
    """What is used of `dynamo.runtime.Context`."""

    @property
    def metadata(self) -> Any: ...

    def id(self) -> str: ...

    def detached(self, id: str) -> Any: ...

    def trace_headers(self) -> dict[str, str] | None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request, as the worker at hand knows it.

    `parent`: OpenTelemetry's context of the span that others become part of; `None` where spans
    are not exported.
    """

    id: str
    context: CallContext
    parent: Any = None


_current: ContextVar[Request | None] = ContextVar("request", default=None)
_spans: "_OpenTelemetry | None" = None
_calls = itertools.count(1)
#: Several processors may call one worker for requests of one id: a count alone would repeat.
_PROCESS: Final = secrets.token_hex(4)


def start() -> None:
    """Name requests in all log lines of this process; export spans where Dynamo's are."""
    global _spans
    logging.setLogRecordFactory(_Record)
    if os.environ.get(_ENABLED_ENV, "").lower() not in _TRUE:
        return
    try:
        _spans = _OpenTelemetry()
    except ImportError as error:
        logger.warning(
            "spans of this component are not exported: %s: "
            'pip install "dynamo-sglang-mm-resume[tracing]"',
            error,
        )


# Which request.


def serving(handler: Handler, name: str | None = None, *, for_clients: bool = False) -> Handler:
    """`handler`, whose work is its request's. With `name`, a span lasts as long as its answer.

    `for_clients`: Dynamo's frontend calls it. A client's headers `x-dynamo-meta-*` are in the
    metadata of that call, so nothing there may name the request.
    """

    async def serve(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        if for_clients:
            _forget_names(context)
        known = _request_of(context)
        with _part_of(known, name, request_id=known.id) if name else nullcontext(known) as ours:
            _current.set(ours)
            async with aclosing(handler(request, context)) as answers:
                async for answer in answers:
                    try:
                        yield answer
                    finally:  # Dynamo takes each answer in a task, with variables, of its own
                        _current.set(ours)

    return serve


def current() -> Request | None:
    """The request that is worked on here."""
    return _current.get()


@contextmanager
def within(request: Request | None) -> Iterator[None]:
    """What happens, and what is started, is `request`'s; `None`: nobody's, as it outlives all.

    Not around a generator's `yield`.
    """
    token = _current.set(request)
    try:
        yield
    finally:
        _current.reset(token)


def call_context() -> Any:
    """Dynamo's context for a call to another worker: of the request, but it does not end with it.

    Its own id begins with the request's, for Dynamo's log lines. `None` outside of requests.
    """
    request = _current.get()
    if request is None:
        return None
    return carrying(request.context.detached(call_id(request.id)))


def call_id(request_id: str) -> str:
    """An id that no other call has, here or elsewhere, and that begins with its request's."""
    return f"{request_id}-{_PROCESS}{next(_calls)}"


def carrying(context: Any) -> Any:
    """`context`, by which another worker will know for whom it is called."""
    request = _current.get()
    if request is None:
        return context
    context.metadata[REQUEST_KEY] = request.id
    header = None if _spans is None else _spans.header_of(request.parent)
    if header is not None:
        context.metadata[PARENT_KEY] = header
    return context


def _forget_names(context: CallContext) -> None:
    for key in (REQUEST_KEY, PARENT_KEY):
        if key in context.metadata:
            del context.metadata[key]


def _request_of(context: CallContext) -> Request:
    name = context.metadata.get(REQUEST_KEY) or context.id()
    parent = None if _spans is None else _spans.parent_of(context)
    return Request(_NOT_IN_IDS.sub("?", name)[:_MAX_ID_CHARS], context, parent)


class _Record(logging.LogRecord):
    """A line of the log that begins with the id of its request, whoever formats it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        request = _current.get()
        self.request_id = "" if request is None else request.id

    def getMessage(self) -> str:
        message = super().getMessage()
        return f"[{self.request_id}] {message}" if self.request_id else message


# How long.


class Span:
    """Work under way. Its seconds go to a histogram and, where spans are exported, to the trace.

    A context manager, also around a generator's `yield`.
    """

    def __init__(self, seconds: Histogram | None = None, exported: Any = None) -> None:
        self._seconds = seconds
        self._exported = exported
        self._started = time.monotonic()

    def end(self, **attributes: Any) -> None:
        """The work is done. What comes later changes nothing."""
        if self._seconds is not None:
            self._seconds.observe(time.monotonic() - self._started)
        if self._exported is not None:
            self._exported.set_attributes(attributes)
        self.abandon()

    def abandon(self, error: BaseException | None = None) -> None:
        """The work was given up, unless it has ended already: the histogram does not hear of it."""
        if self._exported is not None:
            failure = error if isinstance(error, Exception) else None  # to be cancelled is none
            self._exported.__exit__(type(failure), failure, None)  # ends it
        self._seconds = self._exported = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.end()
        else:
            self.abandon(error)


_NOTHING: Final = Span()


def span(name: str, seconds: Histogram | None = None, **attributes: Any) -> Span:
    """A span that nothing else becomes part of. Attributes are bounded: no URL, no prompt."""
    request = _current.get()
    if _spans is not None and request is not None:
        return Span(seconds, _spans.begin(name, request.parent, attributes))
    return _NOTHING if seconds is None else Span(seconds)


@contextmanager
def branch(name: str, **attributes: Any) -> Iterator[None]:
    """A span that all becomes part of which happens within, on other workers too.

    Not around a generator's `yield`.
    """
    request = _current.get()
    if request is None:
        yield
        return
    with _part_of(request, name, **attributes) as part, within(part):
        yield


@contextmanager
def _part_of(request: Request, name: str, **attributes: Any) -> Iterator[Request]:
    """`request` in a further span."""
    if _spans is None:
        yield request
        return
    exported = _spans.begin(name, request.parent, attributes)
    with Span(exported=exported):
        yield replace(request, parent=_spans.inside(exported))


class _OpenTelemetry:
    """All that is used of OpenTelemetry. Raises ImportError where a part of it is not installed."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if _SERVICE_ENV in os.environ else {"service.name": _SERVICE}
        provider = TracerProvider(resource=Resource.create(named))
        provider.add_span_processor(BatchSpanProcessor(_exporter_class()()))
        self.inside = trace.set_span_in_context
        self._provider = provider
        self._tracer = provider.get_tracer(__package__)
        self._w3c = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: Any, attributes: dict[str, Any]) -> Any:
        return self._tracer.start_span(PREFIX + name, context=parent, attributes=attributes)

    def parent_of(self, context: CallContext) -> Any:
        """The span that a call is part of: the caller's where that is one of our workers."""
        header = context.metadata.get(PARENT_KEY)
        carrier = {"traceparent": header} if header else (context.trace_headers() or {})
        return self._w3c.extract(carrier)

    def header_of(self, parent: Any) -> str | None:
        """The span as others may name it; `None` where there is none."""
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier, parent)
        return carrier.get("traceparent")


def _exporter_class() -> Any:
    """By the protocol that Dynamo uses. A name that is unknown to it counts as its default."""
    named = (os.environ[env] for env in _PROTOCOL_ENVS if env in os.environ)
    protocol = _EXPORTERS.get(next(named, ""), next(iter(_EXPORTERS.values())))
    module = import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.trace_exporter")
    return module.OTLPSpanExporter
