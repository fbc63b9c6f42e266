# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers that were started differently serve one graph: with and without the block allocator."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product

from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import COMPATIBILITY, MODEL_NAME, SLOT_TOKENS
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import status_of

DEPLOYMENT = COMPATIBILITY

ENCODE = ("encode-0", "encode-1")
PREFILL = ("prefill-0", "prefill-1")
WITH_SLOTS = "prefill-1"
QUESTION = "What is this?"
MAX_TOKENS = 12
ENOUGH = 32
"""Requests after which every pair of workers has served, taking turns."""
FITS_A_SLOT = (8, 8)
BEYOND_A_SLOT = (15, 11)

Pair = tuple[str, str]


def test_every_pair_moves_what_fits_a_slot(stack: LocalStack, oracle: Oracle) -> None:
    for pair, image, answer in _by_every_pair(stack, FITS_A_SLOT, seed=1000):
        print(pair)
        assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))


def test_the_receiver_decides_what_is_too_long(stack: LocalStack, oracle: Oracle) -> None:
    """A writer with slots sends any length, a receiver with slots refuses what exceeds one."""
    for (_, prefill), image, answer in _by_every_pair(stack, BEYOND_A_SLOT, seed=1100):
        if prefill == WITH_SLOTS:
            assert (answer.status, answer.error and answer.error["code"]) == (400, 400)
            for says in (str(num_tokens(image)), f"holds {SLOT_TOKENS}", "BLOCK_ALLOCATOR=true"):
                assert says in answer.error_message
        else:
            assert_exact(answer, oracle.generate([image], QUESTION, MAX_TOKENS))


def _by_every_pair(
    stack: LocalStack, size: tuple[int, int], seed: int
) -> Iterator[tuple[Pair, Image.Image, Answer]]:
    """Answers to different pictures until each encode worker has met each prefill worker."""
    missing = set(product(ENCODE, PREFILL))
    for n in count():
        assert n < ENOUGH, f"never chosen: {missing}"
        image = patchwork(seed + n, *size)
        before = _transfers(stack)
        answer = _ask(stack, [data_url(image)])
        after = _transfers(stack)
        encode, prefill = (name for name in (*ENCODE, *PREFILL) if after[name] > before[name])
        yield (encode, prefill), image, answer
        missing.discard((encode, prefill))
        if not missing:
            return
        if n % 2:  # turns of prefill workers and of encode workers would stay in step
            _ask(stack, [])


def _transfers(stack: LocalStack) -> dict[str, int]:
    return {n: status_of(stack, n)["totals"]["transfers"] for n in (*ENCODE, *PREFILL)}


def _ask(stack: LocalStack, urls: list[str]) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
