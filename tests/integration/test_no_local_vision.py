# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--no-local-vision`: an engine without its vision tower answers as well, from embeddings.

The processor of this graph would have it encode small requests, and learns that it cannot.
"""

from __future__ import annotations

import re

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME, ONE_BLOCK
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import status

DEPLOYMENT = ONE_BLOCK

MAX_TOKENS = 12
QUESTION = "What is this?"


def test_embeddings_are_all_it_needs(stack: LocalStack, oracle: Oracle) -> None:
    said = _log_of(stack, "prefill-0")
    left_out = re.findall(r"the vision tower is left out: (\d+) parameters", said)
    assert [int(count) > 0 for count in left_out] == [True]
    images = [patchwork(1300 + i, 5, 4 + i) for i in range(2)]
    for chosen in ([images[0]], images):
        urls = [data_url(image) for image in chosen]
        answer = ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
        assert_exact(answer, oracle.generate(chosen, QUESTION, MAX_TOKENS))


def test_the_processor_hears_of_it_once(stack: LocalStack, oracle: Oracle) -> None:
    for i in range(3):
        image = patchwork(1310 + i, 4, 4)
        answer = ask(
            stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, MAX_TOKENS, logprobs=True
        )
        assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))
    assert status(stack, "prefill")["refusals"] == {"no_vision": 1}
    assert not status(stack, "prefill")["local_vision"]
    assert status(stack, "processor")["totals"]["items_local"] == 0
    assert _log_of(stack, "processor").count("has no vision tower") == 1


def _log_of(stack: LocalStack, name: str) -> str:
    (path,) = [process.log_path for process in stack.processes if process.name == name]
    return path.read_text()
