# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Text needs no encode worker: neither where they are gone, nor where there never was one."""

from __future__ import annotations

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask
from tests.support.deployments import COMPATIBILITY, MODEL_NAME, READY_DEADLINE_S
from tests.support.exact import assert_exact
from tests.support.faults import encode_workers
from tests.support.oracle import Oracle
from tests.support.worker_status import status

DEPLOYMENT = COMPATIBILITY

QUESTIONS = ["What is this?", "Describe the colours of a morning in one sentence."]
MAX_TOKENS = 12


def test_text_is_exact_and_moves_nothing(stack: LocalStack, oracle: Oracle) -> None:
    before = status(stack, "processor")["totals"]["items"]
    _assert_exact_text(stack, oracle)
    assert status(stack, "processor")["totals"]["items"] == before


def test_a_graph_without_encode_workers(stack: LocalStack, oracle: Oracle) -> None:
    """They leave a processor that knows them; the next one begins without any."""
    for name in encode_workers(stack):
        assert stack.terminate(name) == 0
    _assert_exact_text(stack, oracle)
    stack.restart("processor")
    stack.wait_ready(READY_DEADLINE_S)
    _assert_exact_text(stack, oracle)


def _assert_exact_text(stack: LocalStack, oracle: Oracle) -> None:
    for question in QUESTIONS:
        for stream in (False, True):
            answer = _ask(stack, question, stream)
            assert_exact(answer, oracle.generate([], question, MAX_TOKENS))


def _ask(stack: LocalStack, question: str, stream: bool) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [], question, MAX_TOKENS, stream, logprobs=True)
