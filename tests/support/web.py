# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A web server on loopback with a few fixed pages, and with all the faults a server may have."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Manner = Literal["whole", "silent", "stalls", "drips", "endless"]
_DRIP_S = 0.1


@dataclass(frozen=True)
class Page:
    """What a path answers."""

    body: bytes
    content_type: str = "image/png"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Beside the two that every answer has, or instead of them."""
    manner: Manner = "whole"
    """The whole body; not even a status; the body and never an end; a byte of it now and then;
    or the body again and again, as fast as the client takes it."""
    after_s: float = 0.0
    """Seconds before the answer begins."""
    uses: int | None = None
    """How often it can be asked for before it is gone (410)."""


@contextmanager
def serve(
    pages: Mapping[str, Page], asked: list[str] | None = None, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Root of a server with these pages by path; every other path answers 404.

    What clients ask for, with the name that they give themselves, is added to `asked`.
    """
    closing = threading.Event()
    used: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(f"{self.path} by {self.headers.get('User-Agent')}")
            page = pages.get(self.path, Page(b"not here", "text/plain", 404))
            used[self.path] += 1
            if page.uses is not None and used[self.path] > page.uses:
                page = Page(b"gone", "text/plain", 410)
            closing.wait(page.after_s)
            try:
                self._answer(page)
            except ConnectionError:
                self.close_connection = True  # the client had enough

        def _answer(self, page: Page) -> None:
            if page.manner == "silent":
                closing.wait()
                return
            self.send_response(page.status)
            headers = {"Content-Type": page.content_type}
            if page.manner == "whole":
                headers["Content-Length"] = str(len(page.body))
            for name, value in (headers | page.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if page.manner == "drips":
                for byte in page.body:
                    self.wfile.write(bytes([byte]))
                    if closing.wait(_DRIP_S):
                        return
            self.wfile.write(page.body)
            while page.manner == "endless" and not closing.is_set():
                self.wfile.write(page.body)
            if page.manner == "stalls":
                closing.wait()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="web-server")
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            closing.set()
            server.shutdown()
            thread.join()
