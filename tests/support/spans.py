# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A collector of OpenTelemetry spans: what processes export to it over OTLP, http/protobuf."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EXPORT_DELAY_MS = 100


@dataclass(frozen=True)
class Exported:
    """A span, ours or Dynamo's. Ids are hex, times in seconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: dict[str, Any]
    failed: bool


class SpanCollector:
    """Listens on loopback from its making on."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector._bodies.append(body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Lets a process export to this collector, soon after the end of each span."""
        return {
            "OTEL_EXPORT_ENABLED": "1",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_DELAY_MS),
            # The environment of whoever runs the tests may name another collector.
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": (
                f"http://127.0.0.1:{self._server.server_port}/v1/traces"
            ),
        }

    def spans(self, trace_id: str) -> list[Exported]:
        """All spans of a trace that have come so far."""
        return [
            span
            for body in list(self._bodies)
            for span in _spans(body)
            if span.trace_id == trace_id
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _spans(body: bytes) -> Iterator[Exported]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Exported(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    {pair.key: _value(pair.value) for pair in span.attributes},
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")
