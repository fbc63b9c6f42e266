# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers of two releases, with and without the block allocator, and one that fits nobody: they
serve one graph, while it is being updated for instance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice, product

from PIL import Image

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from examples.local_stack import LocalStack
from tests.support.another_processor import another_processor
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import (
    COMPATIBILITY,
    MODEL_NAME,
    PREVIOUS_RELEASE,
    READY_DEADLINE_S,
    SLOT_TOKENS,
)
from tests.support.exact import MIN_MARGIN, assert_exact
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import num_tokens, patchwork
from tests.support.previous_release import VERSION as PREVIOUS
from tests.support.worker_status import status_of

DEPLOYMENT = COMPATIBILITY

ENCODE = ("encode-0", "encode-1")
MISFIT = "encode-2"
PREFILL = ("prefill-0", "prefill-1")
WITH_SLOTS = "prefill-1"
OF_RELEASE_BEFORE = ("encode-1", "prefill-1")
QUESTION = "What is this?"
MAX_TOKENS = 12
ENOUGH = 64
"""Requests after which every pair of workers has served, taking turns."""
FITS_A_SLOT = (8, 8)
BEYOND_A_SLOT = (15, 11)

Pair = tuple[str, str]


def test_two_versions_of_the_protocol(stack: LocalStack) -> None:
    """Numbers in this release's code would be the same everywhere."""
    versions = {n: status_of(stack, n)["protocol_version"] for n in (*ENCODE, *PREFILL)}
    assert [name for name, v in versions.items() if v == PREVIOUS] == list(OF_RELEASE_BEFORE)
    assert set(versions.values()) == {PREVIOUS, PROTOCOL_VERSION}


def test_every_pair_moves_what_fits_a_slot(stack: LocalStack, oracle: Oracle) -> None:
    pictures = _pictures(oracle, FITS_A_SLOT, seed=1000)
    for pair, _, expected, answer in _by_every_pair(stack, pictures):
        print(pair)
        assert_exact(answer, expected)


def test_the_receiver_decides_what_is_too_long(stack: LocalStack, oracle: Oracle) -> None:
    """A writer with slots sends any length, a receiver with slots refuses what exceeds one."""
    pictures = _pictures(oracle, BEYOND_A_SLOT, seed=1100)
    for (_, prefill), image, expected, answer in _by_every_pair(stack, pictures):
        if prefill == WITH_SLOTS:
            assert (answer.status, answer.error and answer.error["code"]) == (400, 400)
            for says in (str(num_tokens(image)), f"holds {SLOT_TOKENS}", "BLOCK_ALLOCATOR=true"):
                assert says in answer.error_message
        else:
            assert_exact(answer, expected)


def test_a_processor_of_the_release_before(stack: LocalStack, oracle: Oracle) -> None:
    """It asks this release's workers in its own version, and is answered in that."""
    before = _transfers(stack)
    with another_processor(stack, PREVIOUS_RELEASE):
        stack.terminate("processor")
        pictures = _pictures(oracle, FITS_A_SLOT, seed=1200)
        for pair, _, expected, answer in _by_every_pair(stack, pictures):
            print(pair)
            assert_exact(answer, expected)
    stack.restart("processor")
    stack.wait_ready(READY_DEADLINE_S)
    assert all(count > before[name] for name, count in _transfers(stack).items())


def test_another_block_size_is_refused_and_costs_no_request(
    stack: LocalStack, oracle: Oracle
) -> None:
    refused = _refused(stack)
    for image, expected in islice(_pictures(oracle, FITS_A_SLOT, seed=1300), ENOUGH):
        assert_exact(_ask(stack, [data_url(image)]), expected)
        if _refused(stack) > refused:
            break
    assert _refused(stack) > refused, "it was never chosen"
    assert status_of(stack, MISFIT)["totals"]["transfers"] == 0
    (log,) = [p.log_path for p in stack.processes if p.name == MISFIT]
    assert "block_size is 16 here and 32 there" in log.read_text()


def _refused(stack: LocalStack) -> int:
    return sum(status_of(stack, name)["refusals"].get("layout", 0) for name in PREFILL)


def _pictures(
    oracle: Oracle, size: tuple[int, int], seed: int
) -> Iterator[tuple[Image.Image, OracleAnswer]]:
    """Different ones, and the right answers; without near-ties, which prove nothing."""
    for n in count(seed):
        image = patchwork(n, *size)
        expected = oracle.generate([image], QUESTION, MAX_TOKENS)
        if expected.margin > MIN_MARGIN:
            yield image, expected


def _by_every_pair(
    stack: LocalStack, pictures: Iterator[tuple[Image.Image, OracleAnswer]]
) -> Iterator[tuple[Pair, Image.Image, OracleAnswer, Answer]]:
    """Answers to different pictures until each encode worker has met each prefill worker."""
    missing = set(product(ENCODE, PREFILL))
    shift = random.Random(0)
    for n, (image, expected) in enumerate(pictures):
        assert n < ENOUGH, f"never chosen: {missing}"
        before = _transfers(stack)
        answer = _ask(stack, [data_url(image)])
        after = _transfers(stack)
        encode, prefill = (name for name in (*ENCODE, *PREFILL) if after[name] > before[name])
        yield (encode, prefill), image, expected, answer
        missing.discard((encode, prefill))
        if not missing:
            return
        if shift.random() < 0.5:  # the turns of prefill workers and of encode workers are in step
            _ask(stack, [])


def _transfers(stack: LocalStack) -> dict[str, int]:
    return {n: status_of(stack, n)["totals"]["transfers"] for n in (*ENCODE, *PREFILL)}


def _ask(stack: LocalStack, urls: list[str]) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
