# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A worker of Dynamo's real runtime on a real etcd: it outlives a short absence of etcd, and ends
with an error when its lease is gone. Whole graphs: tests/integration/test_etcd.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import MISSING, PROGRAM, Etcd
from tests.support.worker_status import wait_until

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
    pytest.mark.timeout(180),
]

ROOT = Path(__file__).parents[2]
#: Of the lease; its holder asks for more time twice as often.
TTL_S = 6
DEADLINE_S = 60.0


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    with Etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def worker(etcd: Etcd, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Listed, and ended with the test."""
    env = {
        "DYN_DISCOVERY_BACKEND": "etcd",
        "ETCD_ENDPOINTS": etcd.url,
        "ETCD_LEASE_TTL": str(TTL_S),
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.present_worker"],
            env={**os.environ, **env},
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        assert wait_until(lambda: bool(etcd.leases()) and bool(etcd.keys()), DEADLINE_S)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_signal_ends_it_and_takes_it_off_the_list(
    worker: subprocess.Popen[bytes], etcd: Etcd
) -> None:
    worker.terminate()
    assert worker.wait(DEADLINE_S) == 0
    assert wait_until(lambda: not etcd.keys(), DEADLINE_S)


def test_it_ends_with_an_error_when_its_lease_is_revoked(
    worker: subprocess.Popen[bytes], etcd: Etcd, log: Path
) -> None:
    (lease,) = etcd.leases()
    etcd.revoke(lease)
    assert worker.wait(DEADLINE_S) == 1
    assert "WorkerLost" in log.read_text()


def test_it_ends_with_an_error_after_it_stood_still_for_too_long(
    worker: subprocess.Popen[bytes], etcd: Etcd, log: Path
) -> None:
    worker.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: not etcd.leases(), DEADLINE_S)
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(DEADLINE_S) == 1
    assert "WorkerLost" in log.read_text()


def test_it_outlives_a_short_absence_of_etcd(worker: subprocess.Popen[bytes], etcd: Etcd) -> None:
    (lease,) = etcd.leases()
    etcd.kill()
    etcd.start()
    assert wait_until(lambda: etcd.runs_for(TTL_S + 1), DEADLINE_S)
    assert list(etcd.leases()) == [lease]
    assert worker.poll() is None


@pytest.mark.parametrize("comes_back", [True, False], ids=["forgets", "stays-away"])
def test_it_ends_with_an_error_when_etcd(
    worker: subprocess.Popen[bytes], etcd: Etcd, log: Path, comes_back: bool
) -> None:
    etcd.kill()
    etcd.forget()
    if comes_back:
        etcd.start()
    assert worker.wait(DEADLINE_S) == 1
    assert "WorkerLost" in log.read_text()
