# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A decode worker that stands still for longer than its lease in discovery comes back by itself."""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import E_P_D, MODEL_NAME
from tests.support.discovery import lost
from tests.support.exact import assert_exact
from tests.support.faults import SEEN_DEADLINE_S
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import wait_until

DEPLOYMENT = E_P_D

pytestmark = pytest.mark.nightly

QUESTION = "What is this?"
IMAGE = patchwork(820, 6, 5)
MAX_TOKENS = 8


def test_the_only_decode_worker_is_used_again(stack: LocalStack, oracle: Oracle) -> None:
    with lost(stack, "decode-0"):
        assert _ask(stack).status == 503
    assert wait_until(lambda: _ask(stack).ok, SEEN_DEADLINE_S)
    assert_exact(_ask(stack), oracle.generate([IMAGE], QUESTION, MAX_TOKENS))


def _ask(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS)
