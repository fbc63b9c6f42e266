# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The whole graph on a real etcd: it answers, loses leases, and loses etcd itself.

A worker that has lost its lease cannot have another: Dynamo's runtime ends with it. What is tested
is that the worker ends as well, with exit code 1 and a line that says why, so that a supervisor
starts it again; and what clients see meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S, Keeper
from tests.support.etcd import MISSING, PROGRAM, Etcd
from tests.support.exact import assert_exact
from tests.support.faults import encode_workers, paused
from tests.support.oracle import Oracle, OracleAnswer
from tests.support.pictures import patchwork
from tests.support.worker_status import wait_until

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

QUESTION = "What is this?"
IMAGE = patchwork(850, 6, 5)
MAX_TOKENS = 8
#: Of leases; Dynamo's default is 30. Their holders ask for more time twice as often.
TTL_S = 20
LOST_DEADLINE_S = 40.0
SEEN_DEADLINE_S = 60.0
LOST = "Dynamo's runtime has ended: the lease in discovery is lost"


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(scope="module")
def stack(etcd: Etcd, keeper: Keeper) -> Iterator[LocalStack]:
    """Two encode workers, a prefill worker and a processor, found through etcd."""
    env = {
        "DYN_DISCOVERY_BACKEND": "etcd",
        "ETCD_ENDPOINTS": etcd.url,
        "ETCD_LEASE_TTL": str(TTL_S),
    }
    yield keeper.get(replace(FAULTS, name="etcd", env=(*FAULTS.env, *env.items())))
    keeper.stop()  # before etcd


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> OracleAnswer:
    """The right answer for the picture."""
    return oracle.generate([IMAGE], QUESTION, MAX_TOKENS)


def test_it_answers_exactly(stack: LocalStack, etcd: Etcd, expected: OracleAnswer) -> None:
    assert_exact(_ask(stack), expected)
    assert len(_leases(etcd, "encoder")) == 2


def test_workers_that_lose_their_leases_end(
    stack: LocalStack, etcd: Etcd, expected: OracleAnswer
) -> None:
    """One of two encode workers stands still for too long; the only prefill worker's is revoked."""
    encoder, _ = encode_workers(stack)
    with _ending(stack) as who_has:
        with paused(stack, encoder):
            assert wait_until(lambda: len(_leases(etcd, "encoder")) == 1, LOST_DEADLINE_S)
            assert_exact(_ask(stack), expected)
        assert who_has(1) == {encoder}
        assert_exact(_ask(stack), expected)
        etcd.revoke(_leases(etcd, "prefill")[0])
        assert who_has(2) == {encoder, "prefill-0"}
        assert _ask(stack).status == 503
    assert wait_until(lambda: _ask(stack).ok, SEEN_DEADLINE_S)
    assert_exact(_ask(stack), expected)


@pytest.mark.nightly
def test_etcd_that_is_killed_and_comes_back_costs_nothing(
    stack: LocalStack, etcd: Etcd, expected: OracleAnswer
) -> None:
    """It knows the leases as before, and is away for less than they last."""
    processes, leases = stack.processes, set(etcd.leases())
    etcd.kill()
    assert_exact(_ask(stack), expected)
    etcd.start()
    # Every holder has asked for more time since, or its lease would have ended.
    assert wait_until(lambda: etcd.runs_for(TTL_S + 1), LOST_DEADLINE_S)
    assert set(etcd.leases()) == leases
    assert_exact(_ask(stack), expected)
    stack.check()
    assert stack.processes == processes


def _ask(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(IMAGE)], QUESTION, MAX_TOKENS)


def _leases(etcd: Etcd, component: str) -> list[int]:
    """Of the instances of a component."""
    return [
        lease
        for lease, keys in etcd.leases().items()
        if any(f"/{component}/generate/" in key for key in keys)
    ]


@contextmanager
def _ending(stack: LocalStack) -> Iterator[Callable[[int], set[str]]]:
    """Some processes end by themselves in the block; the function that this gives waits until so
    many have, and says which. Each has said why. Afterwards all are started again.
    """
    ended: set[str] = set()

    def who_has(count: int) -> set[str]:
        assert wait_until(lambda: len(_ended(stack)) >= count, LOST_DEADLINE_S), _ended(stack)
        ended.update(_ended(stack))
        return set(ended)

    yield who_has
    for name in sorted(ended):
        log = stack.log_dir / f"{name}.log"
        assert stack.terminate(name) == 1, name  # its code: it has ended already
        assert LOST in log.read_text()
        stack.restart(name)
    stack.wait_ready(READY_DEADLINE_S)


def _ended(stack: LocalStack) -> set[str]:
    """Processes that nobody has collected yet."""
    zombie = psutil.STATUS_ZOMBIE
    return {each.name for each in stack.processes if psutil.Process(each.pid).status() == zombie}
