# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`tracing.py`, in one process; across real ones tests/integration/test_metrics_and_traces.py."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import pytest
from dynamo.runtime import Context as DynamoContext

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.histogram import SECONDS, Histogram
from dynamo.sglang_mm_resume.transport.tasks import in_thread

logger = logging.getLogger(__name__)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


class FakeContext:
    """What is used of Dynamo's."""

    def __init__(self, name: str = "some-id", headers: dict[str, str] | None = None) -> None:
        self.metadata: dict[str, str] = {}
        self._name = name
        self._headers = headers

    def id(self) -> str:
        return self._name

    def detached(self, name: str) -> FakeContext:
        return FakeContext(name, self._headers)

    def trace_headers(self) -> dict[str, str] | None:
        return self._headers


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Log lines, as any handler sees them."""
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(tracing._Record)
    caplog.set_level(logging.INFO)
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(handler.format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logging.setLogRecordFactory(factory)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Spans go to memory instead of a collector."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    monkeypatch.setattr(tracing, "_exporter_class", lambda: lambda: exporter)
    spans = tracing._OpenTelemetry()
    monkeypatch.setattr(tracing, "_spans", spans)

    def by_name() -> dict[str, Any]:
        spans._provider.force_flush()
        return {span.name: span for span in exporter.get_finished_spans()}

    yield by_name
    spans._provider.shutdown()


async def _as_dynamo_does(stream: AsyncIterator[Any]) -> list[Any]:
    """Every answer in a task with variables of its own."""
    found = []
    loop = asyncio.get_running_loop()
    while True:
        try:
            found.append(await loop.create_task(anext(stream), context=Context()))  # type: ignore[arg-type]
        except StopAsyncIteration:
            return found


# Log lines.


async def test_lines_of_a_request_begin_with_its_id(lines: list[str]) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        for i in range(2):
            logger.info("answer %d of %s", i, request)
            await asyncio.create_task(_say("in a task"))
            await in_thread(threads, logger.info, "in a thread")
            yield i
        logger.info("the end")

    with ThreadPoolExecutor(1) as threads:
        serve = tracing.serving(handler)  # type: ignore[arg-type]
        assert await _as_dynamo_does(serve("x", FakeContext("id-1"))) == [0, 1]
    logger.info("elsewhere")
    assert lines == [
        *("[id-1] answer 0 of x", "[id-1] in a task", "[id-1] in a thread"),
        *("[id-1] answer 1 of x", "[id-1] in a task", "[id-1] in a thread"),
        *("[id-1] the end", "elsewhere"),
    ]


async def _say(text: str) -> None:
    logger.info(text)


async def test_requests_do_not_mix(lines: list[str]) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        for i in range(3):
            await asyncio.sleep(0)
            logger.info("%s", request)
            yield i

    serve = tracing.serving(handler)  # type: ignore[arg-type]
    await asyncio.gather(*(_as_dynamo_does(serve(n, FakeContext(n))) for n in ("a", "b", "c")))
    assert sorted(lines) == [f"[{n}] {n}" for n in "abc" for _ in range(3)]


async def test_a_handler_that_is_closed_cleans_up_as_its_request(lines: list[str]) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            logger.info("clean")

    stream = tracing.serving(handler)(None, FakeContext("gone"))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    await loop.create_task(anext(stream), context=Context())  # type: ignore[arg-type]
    await loop.create_task(stream.aclose(), context=Context())  # type: ignore[arg-type]
    assert lines == ["[gone] clean"]


def test_what_outlives_a_request_is_not_its(lines: list[str]) -> None:
    with tracing.within(tracing.Request("id", FakeContext())):
        with tracing.within(None):
            logger.info("nobody's")
        logger.info("%d %%", 5)
    assert lines == ["nobody's", "[id] 5 %"]


@pytest.mark.parametrize("bad", ["a\nb", "x" * 1000, "50%d", "[y] "])
async def test_an_id_cannot_write_lines_of_its_own(lines: list[str], bad: str) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        logger.info("said")
        yield 1

    await _as_dynamo_does(tracing.serving(handler)(None, FakeContext(bad)))  # type: ignore[arg-type]
    (line,) = lines
    assert len(line) < 100
    assert line.endswith("] said")
    assert not set(line[1:-6]) & set("\n%[] ")


# Calls.


def test_a_call_outside_of_a_request_has_no_context() -> None:
    assert tracing.call_context() is None


def test_a_call_is_the_request_s_but_has_an_id_and_an_end_of_its_own() -> None:
    """Dynamo breaks off one of two calls that have one id at the same time."""
    context = FakeContext("id-2")
    with tracing.within(tracing.Request("id-2", context)):
        one, other = tracing.call_context(), tracing.call_context()
    assert one is not context
    assert one.id() != other.id()
    assert one.id().startswith("id-2-")
    assert one.metadata == other.metadata == {tracing.REQUEST_KEY: "id-2"}


def test_two_processes_do_not_call_by_one_id() -> None:
    """Whatever the request is called, and however many calls each has made."""
    program = "from dynamo.sglang_mm_resume import tracing; print(tracing.call_id('id'))"
    ids = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(ids) == 2


async def test_a_client_cannot_name_its_request(lines: list[str]) -> None:
    """Dynamo puts the headers `x-dynamo-meta-*` into the metadata of the frontend's call."""

    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        logger.info("here")
        call = tracing.call_context()
        assert dict(call.metadata) == {tracing.REQUEST_KEY: "id-5", "z": "1"}
        yield 1

    named = {tracing.REQUEST_KEY: "x", tracing.PARENT_KEY: "y", "z": "1"}
    context = DynamoContext("id-5", metadata=named)
    serve = tracing.serving(handler, for_clients=True)
    await _as_dynamo_does(serve(None, context))
    assert lines == ["[id-5] here"]
    assert dict(context.metadata) == {"z": "1"}


async def test_a_worker_that_is_called_knows_the_request(lines: list[str]) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        logger.info("here")
        again = tracing.call_context()
        assert again.metadata[tracing.REQUEST_KEY] == "id-4"
        yield 1

    with tracing.within(tracing.Request("id-4", FakeContext("id-4"))):
        called = tracing.call_context()
    await _as_dynamo_does(tracing.serving(handler)(None, called))  # type: ignore[arg-type]
    assert lines == ["[id-4] here"]


# Spans.


def test_without_export_a_span_is_nothing_but_its_histogram() -> None:
    seconds = Histogram(SECONDS)
    with tracing.within(tracing.Request("id", FakeContext())):
        assert tracing.span("a") is tracing.span("b")
        with tracing.span("a", seconds), tracing.branch("b"):
            assert tracing.PARENT_KEY not in tracing.carrying(FakeContext()).metadata
    assert seconds.count == 1


def test_only_what_was_done_is_timed() -> None:
    seconds = Histogram(SECONDS)
    with pytest.raises(ValueError, match="no"), tracing.Span(seconds):
        raise ValueError("no")
    given_up = tracing.Span(seconds)
    given_up.abandon()
    given_up.end()
    assert seconds.count == 0
    done = tracing.Span(seconds)
    done.end()
    done.end()
    done.abandon()
    assert seconds.count == 1


async def test_spans_nest_over_two_workers_in_dynamo_s_trace(exported: Any) -> None:
    async def second(request: Any, context: Any) -> AsyncIterator[int]:
        with tracing.span("work", tokens=3):
            yield 1

    async def first(request: Any, context: Any) -> AsyncIterator[int]:
        with tracing.branch("part"):
            called = tracing.call_context()
        await _as_dynamo_does(tracing.serving(second, "second")(None, called))  # type: ignore[arg-type]
        with tracing.span("after"):
            yield 1

    context = FakeContext("id-3", {"traceparent": TRACEPARENT})
    await _as_dynamo_does(tracing.serving(first, "first")(None, context))  # type: ignore[arg-type]
    found = exported()
    assert {format(span.context.trace_id, "032x") for span in found.values()} == {TRACE}
    parents = {
        name.removeprefix("mm_resume."): format(span.parent.span_id, "016x")
        for name, span in found.items()
    }
    ids = {
        name.removeprefix("mm_resume."): format(span.context.span_id, "016x")
        for name, span in found.items()
    }
    assert parents == {
        "first": SPAN,
        "part": ids["first"],
        "second": ids["part"],
        "work": ids["second"],
        "after": ids["first"],
    }
    assert found["mm_resume.first"].attributes["request_id"] == "id-3"
    assert found["mm_resume.work"].attributes["tokens"] == 3


@pytest.mark.parametrize("header", [None, "nonsense", "00-0-0-00"])
async def test_a_request_without_a_trace_begins_one(exported: Any, header: str | None) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        yield 1

    context = FakeContext(headers=None if header is None else {"traceparent": header})
    await _as_dynamo_does(tracing.serving(handler, "alone")(None, context))  # type: ignore[arg-type]
    assert exported()["mm_resume.alone"].parent is None


async def test_a_failure_is_in_its_span_and_a_hang_up_is_none(exported: Any) -> None:
    async def handler(request: Any, context: Any) -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    fails = tracing.serving(handler, "fails")(None, FakeContext())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="broken"):
        await _as_dynamo_does(fails)
    closed = tracing.serving(handler, "closed")(None, FakeContext())  # type: ignore[arg-type]
    await anext(closed)
    await closed.aclose()
    found = exported()
    assert not found["mm_resume.fails"].status.is_ok
    assert [event.name for event in found["mm_resume.fails"].events] == ["exception"]
    assert found["mm_resume.closed"].status.is_ok is not False
    assert not found["mm_resume.closed"].events


def test_spans_are_on_only_where_dynamo_s_are(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(tracing, "_spans", None)
    monkeypatch.setattr(tracing, "_OpenTelemetry", lambda: "on")
    monkeypatch.delenv("OTEL_EXPORT_ENABLED", raising=False)
    try:
        tracing.start()
        assert tracing._spans is None
        monkeypatch.setenv("OTEL_EXPORT_ENABLED", "1")
        tracing.start()
        assert tracing._spans == "on"
    finally:
        logging.setLogRecordFactory(factory)


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(tracing, "_spans", None)
    monkeypatch.setenv("OTEL_EXPORT_ENABLED", "true")
    monkeypatch.setattr(tracing, "_exporter_class", _not_installed)
    try:
        tracing.start()
    finally:
        logging.setLogRecordFactory(factory)
    assert tracing._spans is None
    assert "No module named" in caplog.text
    assert "[tracing]" in caplog.text


def _not_installed() -> Any:
    raise ModuleNotFoundError("No module named 'opentelemetry.exporter'")


@pytest.mark.parametrize(
    ("env", "module"),
    [
        ({}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "http"),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http",
        ),
    ],
    ids=["default", "all", "traces"],
)
def test_the_protocol_is_dynamo_s(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], module: str
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    asked: list[str] = []
    monkeypatch.setattr(tracing, "import_module", lambda name: asked.append(name) or _Module)
    assert tracing._exporter_class() is _Module.OTLPSpanExporter
    assert asked == [f"opentelemetry.exporter.otlp.proto.{module}.trace_exporter"]


class _Module:
    OTLPSpanExporter = object()
