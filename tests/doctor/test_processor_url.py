# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whose address `--processor` names: a processor's, somebody else's, or nobody's."""

import json
import socket
from typing import Any

import pytest

from dynamo.sglang_mm_resume.doctor.processor_url import (
    MAX_BYTES,
    NotReached,
    base_url,
    namespace_of,
)
from tests.support.web import Page, serve

ROUTE = "/engine/mm_resume/status"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.7:8081", "http://10.0.0.7:8081"),
        ("http://node-1:8081", "http://node-1:8081"),
        ("http://node-1:8081/", "http://node-1:8081"),
        ("https://[::1]:8081", "https://[::1]:8081"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "node-1", "http://node-1", "node-1:many", "node-1:99999", ":8081"),
        *("grpc://node-1:8081", "http://node-1:8081/metrics", "http://node-1:8081?x=1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        base_url(text)


def page(status: Any) -> Page:
    return Page(json.dumps(status).encode(), "application/json")


async def test_a_processor_names_its_namespace() -> None:
    with serve({ROUTE: page({"role": "processor", "namespace": "prod"})}) as url:
        assert await namespace_of(url) == "prod"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (page({"role": "encode", "namespace": "prod"}), "its role is encode"),
        (page({"role": "processor"}), "another release"),
        (page({"role": "processor", "namespace": 3}), "another release"),
        (page(["processor"]), "names no role"),
        (Page(b"<html>", "text/html"), "no JSON"),
        (Page(b"x", "text/plain", 404), "answers 404"),
        (Page(b"{" * 2**16, manner="endless"), "no JSON"),
    ],
)
async def test_somebody_else_is_refused(answer: Page, text: str) -> None:
    with serve({ROUTE: answer}) as url, pytest.raises(ValueError, match=text):
        await namespace_of(url)


@pytest.mark.parametrize(
    "page",
    [Page(b"", manner="silent"), Page(b"{}", manner="stalls"), Page(b"{" * 999, manner="drips")],
    ids=lambda page: page.manner,
)
async def test_who_does_not_finish_is_given_up(page: Page) -> None:
    with serve({ROUTE: page}) as url, pytest.raises(NotReached, match=r"within 0\.3 s"):
        await namespace_of(url, limit_s=0.3)


async def test_nobody_is_not_reached() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        with pytest.raises(NotReached):
            await namespace_of(f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_an_answer_is_bounded() -> None:
    assert MAX_BYTES <= 2**20
