# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers that stand still for longer than their lease in discovery: they are listed and used
again by themselves when they go on, and others go on meanwhile (R16).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S
from tests.support.discovery import LEASE_S, listed, lost, reregistrations
from tests.support.exact import assert_exact
from tests.support.faults import SEEN_DEADLINE_S, encode_workers, paused
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import patchwork
from tests.support.worker_status import get, status_of, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
IMAGE = patchwork(810, 6, 5)
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> OracleAnswer:
    """The right answer for the picture."""
    return oracle.generate([IMAGE], QUESTION, MAX_TOKENS)


@pytest.fixture(autouse=True)
def everybody_is_ready(stack: LocalStack) -> Iterator[None]:
    """Before each test, also after one that failed."""
    stack.wait_ready(READY_DEADLINE_S)
    yield


def test_an_encode_worker_is_used_again(stack: LocalStack, expected: OracleAnswer) -> None:
    name, other = encode_workers(stack)
    with lost(stack, name):
        before = _transfers(stack, other)
        assert_exact(_ask(stack), expected)
        assert _transfers(stack, other) > before
    _is_used(stack, name, expected)
    metrics = get(f"{stack.worker_urls[name]}/metrics").text
    assert "mm_resume_reregistrations_total{" in metrics


def test_the_only_prefill_worker_is_used_again(stack: LocalStack, expected: OracleAnswer) -> None:
    with lost(stack, "prefill-0"):
        assert _ask(stack).status == 503
    for name in encode_workers(stack):
        _is_used(stack, name, expected)


def test_the_only_processor_is_used_again(stack: LocalStack, expected: OracleAnswer) -> None:
    with lost(stack, "processor"):
        assert _ask(stack).status in (404, 503)
    for name in encode_workers(stack):
        _is_used(stack, name, expected)


def test_a_machine_that_stood_still(stack: LocalStack, expected: OracleAnswer) -> None:
    """The first process to go on takes the others off the list: their leases have ended as well."""
    before = listed(stack)
    counts = {name: reregistrations(stack, name) for name in stack.worker_urls}
    with ExitStack() as standing_still:
        for process in stack.processes:
            standing_still.enter_context(paused(stack, process.name))
        assert wait_until(lambda: not _kept_alive(stack, time.time() - LEASE_S), SEEN_DEADLINE_S)
    assert wait_until(
        lambda: _kept_alive(stack, time.time() - LEASE_S) == set(before), SEEN_DEADLINE_S
    )
    back = [name for name, count in counts.items() if reregistrations(stack, name) > count]
    print(f"lost and back: {back}")
    for name in encode_workers(stack):
        _is_used(stack, name, expected)


def test_an_engine_that_is_paused_on_purpose_stays_away(
    stack: LocalStack, expected: OracleAnswer
) -> None:
    before = listed(stack)
    _control(stack, "pause_generation")
    try:
        (away,) = set(before) - set(listed(stack))
        # Longer than it takes to put back what is lost.
        later = time.time() + 5.0
        assert wait_until(lambda: bool(_kept_alive(stack, later)), 2 * LEASE_S)
        assert away not in listed(stack)
    finally:
        _control(stack, "continue_generation")
    assert away in listed(stack)
    for name in encode_workers(stack):
        _is_used(stack, name, expected)


def _kept_alive(stack: LocalStack, since: float) -> set[Path]:
    """Entries whose owner has touched them since that time."""
    return {path for path, touched_at in listed(stack).items() if touched_at > since}


def _control(stack: LocalStack, route: str) -> None:
    url = f"{stack.worker_urls['prefill-0']}/engine/{route}"
    httpx.post(url, json={}, trust_env=False, timeout=SEEN_DEADLINE_S).raise_for_status()


def _ask(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS)


def _transfers(stack: LocalStack, name: str) -> int:
    return int(status_of(stack, name)["totals"]["transfers"])


def _is_used(stack: LocalStack, name: str, expected: OracleAnswer) -> None:
    """A picture that it encodes is answered right, as are those that others encode meanwhile."""
    assert wait_until(lambda: _ask(stack).ok, SEEN_DEADLINE_S)
    before = _transfers(stack, name)

    def used() -> bool:
        assert_exact(_ask(stack), expected)
        return _transfers(stack, name) > before

    assert wait_until(used, SEEN_DEADLINE_S), f"{name} is not used"
