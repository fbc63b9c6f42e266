# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Unless told otherwise, no picture is loaded over plain http or from a private address.

Here it is the frontend that refuses, before any worker sees the request; it does not say why.
"""

from __future__ import annotations

import base64

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import LOCAL_URLS, MODEL_NAME, ONE_BLOCK
from tests.support.pictures import patchwork
from tests.support.web import Page, serve

DEPLOYMENT = ONE_BLOCK

QUESTION = "What is this?"
PICTURE_URL = data_url(patchwork(7, 4, 4))
PNG = base64.b64decode(PICTURE_URL.partition(",")[2])


def test_this_deployment_has_the_default_policy() -> None:
    assert LOCAL_URLS not in DEPLOYMENT.env


def test_plain_http_is_refused_and_nothing_is_loaded(stack: LocalStack) -> None:
    loaded: list[str] = []
    with serve({"/picture.png": Page(PNG)}, loaded) as web:
        answer = _ask(stack, f"{web}/picture.png")
    assert answer.status == 400, answer.raw
    assert loaded == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "localhost"],
    ids=["loopback", "private", "link-local", "loopback-v6", "localhost"],
)
def test_private_address_is_refused(stack: LocalStack, host: str) -> None:
    assert _ask(stack, f"https://{host}/picture.png").status == 400


def test_picture_inside_the_request_is_served(stack: LocalStack) -> None:
    assert _ask(stack, PICTURE_URL).ok


def _ask(stack: LocalStack, url: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], QUESTION, max_tokens=4)
