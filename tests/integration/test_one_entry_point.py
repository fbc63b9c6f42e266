# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m dynamo.sglang_mm_resume` starts every worker, as the original documents have it."""

from __future__ import annotations

import psutil
import pytest

from dynamo.sglang_mm_resume.workers.role import MODE_ENV
from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import COMPATIBILITY, MODEL_NAME
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status_of

DEPLOYMENT = COMPATIBILITY

QUESTION = "What is this?"
MAX_TOKENS = 12


@pytest.mark.parametrize(
    ("name", "role", "mode"),
    [
        ("encode-0", "encode", "encode"),
        ("prefill-0", "prefill", "language"),
        ("processor", "processor", None),
    ],
)
def test_environment_or_flag_choose_the_worker(
    stack: LocalStack, name: str, role: str, mode: str | None
) -> None:
    (process,) = [psutil.Process(p.pid) for p in stack.processes if p.name == name]
    command = process.cmdline()
    assert command[1:3] == ["-m", "dynamo.sglang_mm_resume"]
    assert process.environ().get(MODE_ENV) == mode
    assert ("--role" in command) == (mode is None)
    assert status_of(stack, name)["role"] == role


def test_the_graph_answers(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(900, 7, 6)
    answer = ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, MAX_TOKENS, logprobs=True)
    assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
