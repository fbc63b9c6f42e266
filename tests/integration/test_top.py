# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`top` as an operator runs it, against the running graph: named ports, and discovery."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.pictures import patchwork
from tests.support.worker_status import status

DEPLOYMENT = TRAINED
DEADLINE_S = 90.0
POOL_BLOCKS = 512  # of the default settings
ROLES = ["processor", "encode", "prefill"]
# A port that nobody listens on: the range of the stack's own begins above.
NOBODY = "127.0.0.1:9"


def top(stack: LocalStack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One frame, or one JSON object, in the environment of the workers."""
    # As in the pod of a worker: the port is taken, and not top's.
    taken = stack.system_urls["prefill"][0].rpartition(":")[2]
    return subprocess.run(
        [sys.executable, "-m", "dynamo.sglang_mm_resume.top", "--once", *arguments],
        env={**stack.environment, "DYN_SYSTEM_PORT": taken},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def document(outcome: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def urls(stack: LocalStack) -> str:
    return ",".join(url.removeprefix("http://") for url in stack.worker_urls.values())


@pytest.fixture(scope="module", autouse=True)
def a_picture(stack: LocalStack) -> None:
    """Something to be seen in the totals."""
    answer = ask(
        stack.base_url, MODEL_NAME, [data_url(patchwork(1, 4, 4))], "What is this?", max_tokens=4
    )
    assert answer.ok, answer.error_message


def test_named_workers_as_json(stack: LocalStack) -> None:
    outcome = top(stack, "--json", "--interval", "0.5", "--url", urls(stack))
    assert outcome.returncode == 0, outcome.stderr
    found = document(outcome)
    assert [worker["role"] for worker in found["workers"]] == ROLES
    assert all(worker["error"] is None for worker in found["workers"])
    assert found["window_s"] == pytest.approx(0.5, abs=0.45)
    prefill = found["workers"][2]
    assert prefill["pool"]["total"] == prefill["pool"]["free"] == POOL_BLOCKS
    totals = status(stack, "prefill")["totals"]
    resumed = totals["embeddings_resumed"] / totals["embeddings_assembled"]
    assert found["resume_rate"]["since_start"] == pytest.approx(resumed, abs=1e-3)
    assert found["wait_p99_s"]["since_start"] is not None
    assert found["wait_p99_s"]["since_start"] < 1.0


def test_discovered_workers_as_a_frame(stack: LocalStack) -> None:
    outcome = top(stack, "--interval", "0.5")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""  # nothing of Dynamo's log in the picture
    frame = outcome.stdout
    assert f"{stack.environment['DYN_NAMESPACE']}  3 workers" in frame
    for role in ROLES:
        assert f"{role} " in frame
    assert frame.count(f"of {POOL_BLOCKS} in use") == 2
    assert "without an answer" not in frame


def test_a_worker_that_is_not_there_is_shown_and_told_by_the_exit_code(stack: LocalStack) -> None:
    outcome = top(stack, "--interval", "0.2", "--url", urls(stack), "--url", NOBODY)
    assert outcome.returncode == 1
    assert "4 workers, 1 without an answer" in outcome.stdout
    assert "cannot be reached" in outcome.stdout


def test_a_worker_that_hangs_is_shown_and_waited_for_no_longer(stack: LocalStack) -> None:
    stack.pause("encode-0")
    try:
        outcome = top(stack, "--json", "--interval", "0.2", "--timeout", "0.5")
    finally:
        stack.unpause("encode-0")
    assert outcome.returncode == 1, outcome.stderr
    errors = {worker["name"].split()[0]: worker["error"] for worker in document(outcome)["workers"]}
    assert errors.pop("encode") == "no answer in 0.5 s"
    assert set(errors.values()) == {None}


def test_a_namespace_without_workers(stack: LocalStack) -> None:
    outcome = top(stack, "--interval", "0.2", "--namespace", "nobody-is-here")
    assert outcome.returncode == 1
    assert "no worker is listed" in outcome.stdout
