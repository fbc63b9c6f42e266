# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Ten times more than the graph can take: answers or prompt refusals, nothing in between (R7)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url, request_body
from tests.support.deployments import FAULTS, MODEL_NAME, Deployment
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, status, wait_until

CAPACITY = 16
"""Requests that the processor lets in at a time."""
DEPLOYMENT = Deployment(
    "overload",
    workers=(*FAULTS.workers, "--mm-resume-max-encodes", str(CAPACITY)),
    prefill=FAULTS.prefill,
    processor=(*FAULTS.processor, "--mm-resume-max-requests", str(CAPACITY)),
    env=FAULTS.env,
    frontend_module=FAULTS.frontend_module,
)
"""With the pool of 8 blocks of 16 tokens: a default grant is 2 blocks."""

QUESTION = "What is this?"
MAX_TOKENS = 6
#: 16 to 225 tokens: half a default grant, and nearly twice the whole pool.
SIZES = [(4, 4), (8, 8), (12, 12), (15, 15)]
WAVES = 3
#: Refusals take milliseconds; a machine that is busy with something else is no failure.
REFUSED_WITHIN_S = 5.0
CLIENT_TIMEOUT_S = 120.0
MAX_GROWTH_MIB = 200.0
SEEN_DEADLINE_S = 60.0
HOME_DEADLINE_S = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    size: int
    status: int
    seconds: float
    token_ids: list[int]
    retry_after: str | None


def test_ten_times_the_capacity(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(600 + i, *size) for i, size in enumerate(SIZES)]
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS).token_ids for image in images]
    bodies = [request_body(MODEL_NAME, [data_url(i)], QUESTION, MAX_TOKENS) for i in images]
    outcomes = asyncio.run(_waves(stack, bodies, 1))  # whatever is allocated once, is by now
    before = _memory_mib(stack)
    outcomes += asyncio.run(_waves(stack, bodies, WAVES))
    growth = {name: mib - before[name] for name, mib in _memory_mib(stack).items()}
    _print(outcomes, growth)

    assert {outcome.status for outcome in outcomes} == {200, 503}
    for outcome in outcomes:
        if outcome.status == 200:
            assert outcome.token_ids == expected[outcome.size]
        else:
            assert outcome.retry_after is not None
            assert int(outcome.retry_after) > 0
    refusals = sorted(outcome.seconds for outcome in outcomes if outcome.status == 503)
    assert refusals[int(0.99 * len(refusals))] < REFUSED_WITHIN_S
    answered = Counter(outcome.size for outcome in outcomes if outcome.status == 200)
    assert min(answered[size] for size in range(len(SIZES))) >= WAVES, "one size starves"
    assert max(growth.values()) < MAX_GROWTH_MIB
    errors = status(stack, "processor")["totals"]["errors"]
    assert set(errors) <= {"overloaded"}, "no time-out, no failure"


def test_the_urgent_gets_blocks_before_those_that_came_earlier(stack: LocalStack) -> None:
    """`nvext.agent_hints.priority` orders those that wait for blocks."""
    slow, small = patchwork(610, 30, 30), patchwork(611, 4, 4)  # 3,600 patches: a second each
    with ThreadPoolExecutor(CAPACITY) as threads:
        holders = [threads.submit(_ask, stack, slow, 0) for _ in range(6)]
        assert wait_until(lambda: _waiting(stack) >= 2, SEEN_DEADLINE_S)
        before = _waiting(stack)
        patient = [threads.submit(_ask, stack, small, 0) for _ in range(3)]
        assert wait_until(lambda: _waiting(stack) >= before + 3, SEEN_DEADLINE_S)
        urgent = threads.submit(_ask, stack, small, 10)
        answers = [asked.result(CLIENT_TIMEOUT_S) for asked in (urgent, *patient, *holders)]
    assert all(answer.ok for answer in answers), [answer.raw for answer in answers]
    first, *others = [_wait_ms(answer) for answer in answers[:4]]
    print(f"waited for blocks: the urgent {first:.0f} ms, the others {others} ms")
    assert first < min(others)


async def _waves(stack: LocalStack, bodies: Sequence[dict[str, Any]], number: int) -> list[Outcome]:
    # Not httpx: its pool looks at every idle connection for every request.
    timeout = aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:
        outcomes: list[Outcome] = []
        for _ in range(number):
            asked = [
                _outcome(client, stack, i % len(bodies), bodies[i % len(bodies)])
                for i in range(10 * CAPACITY)
            ]
            outcomes += await asyncio.gather(*asked)
            assert wait_until(lambda: not leftovers(stack), HOME_DEADLINE_S), leftovers(stack)
        return outcomes


async def _outcome(
    client: aiohttp.ClientSession, stack: LocalStack, size: int, body: dict[str, Any]
) -> Outcome:
    started_at = time.monotonic()
    async with client.post(f"{stack.base_url}/chat/completions", json=body) as response:
        content = await response.json()
    seconds = time.monotonic() - started_at
    token_ids = (content.get("nvext") or {}).get("completion_token_ids") or []
    return Outcome(size, response.status, seconds, token_ids, response.headers.get("Retry-After"))


def _print(outcomes: Sequence[Outcome], growth: dict[str, float]) -> None:
    """The distribution, for those who tune it."""
    for size, shape in enumerate(SIZES):
        of_size = [outcome for outcome in outcomes if outcome.size == size]
        took = sorted(outcome.seconds for outcome in of_size if outcome.status == 200)
        print(
            f"{shape[0] * shape[1]:4d} tokens: {len(took)} of {len(of_size)} answered, "
            f"median {took[len(took) // 2]:.2f} s, longest {took[-1]:.2f} s"
        )
    refused = sorted(outcome.seconds for outcome in outcomes if outcome.status == 503)
    print(f"{len(refused)} refused, 99 % within {refused[int(0.99 * len(refused))]:.2f} s")
    print("growth in MiB:", {name: round(mib) for name, mib in growth.items()})


def _memory_mib(stack: LocalStack) -> dict[str, float]:
    return {
        process.name: psutil.Process(process.pid).memory_info().rss / 2**20
        for process in stack.processes
    }


def _ask(stack: LocalStack, image: Any, priority: int) -> Answer:
    nvext = {
        "extra_fields": ["engine_data", "completion_token_ids"],
        "agent_hints": {"priority": priority},
    }
    return ask(stack.base_url, MODEL_NAME, [data_url(image)], QUESTION, MAX_TOKENS, nvext=nvext)


def _wait_ms(answer: Answer) -> float:
    assert answer.engine_data is not None
    return float(answer.engine_data["mm_resume"]["wait_ms"])


def _waiting(stack: LocalStack) -> int:
    return int(status(stack, "prefill")["waiting"])
