# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor with a real graph of two encode and two prefill workers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.core.lengths import ENOUGH
from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME, TWO_BY_TWO
from tests.support.faults import answers_again, paused
from tests.support.pictures import patchwork
from tests.support.worker_status import statuses

DEPLOYMENT = TWO_BY_TWO

RUN = (sys.executable, "-m", "dynamo.sglang_mm_resume.doctor")
# A default grant of this deployment has 32 tokens: two rounds or more for each picture.
SMALL = ("--image-size", "224")
LIMIT_S = 200.0
#: A paused worker costs the time that it is given for an answer, and no more.
SOON_S = 40.0

Checks = dict[str, dict[str, Any]]


def run(stack: LocalStack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The doctor, in the environment of the stack's processes."""
    return subprocess.run(
        [*RUN, *arguments],
        env={**stack.environment, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def checks_of(ran: subprocess.CompletedProcess[str]) -> Checks:
    """The checks of a JSON report, by name."""
    assert ran.stdout, ran.stderr
    report = json.loads(ran.stdout)
    assert report["exit_code"] == ran.returncode
    return {check["name"]: check for check in report["checks"]}


def pairs_in(checks: Checks) -> list[dict[str, Any]]:
    return [check for check in checks.values() if check["section"] == "Transfers"]


@pytest.fixture(scope="module")
def graph(stack: LocalStack) -> Checks:
    """One examination of the graph alone."""
    ran = run(stack, "--graph", "--json", *SMALL)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    assert [line for line in ran.stderr.splitlines() if not line.startswith("doctor: ")] == []
    return checks_of(ran)


def test_everybody_is_found_and_fits(stack: LocalStack, graph: Checks) -> None:
    assert graph["workers"]["figures"] == {"processor": 1, "encode": 2, "prefill": 2, "decode": 0}
    assert "all 5" in graph["answers"]["text"]
    layout = statuses(stack, "encode")[0]["layout"]
    assert (layout["model"], layout["block_size"]) == (MODEL_NAME, 16)
    for name, value in {**layout, "protocol_version": PROTOCOL_VERSION}.items():
        check = graph[name.replace("_", " ")]
        assert (check["outcome"], check["figures"]["value"]) == ("ok", str(value))
    assert graph["releases"]["outcome"] == "ok"
    assert graph["GPU memory"]["outcome"] == "ok"


def test_a_picture_goes_through_every_pair(graph: Checks) -> None:
    pairs = pairs_in(graph)
    assert [pair["outcome"] for pair in pairs] == ["ok"] * 4
    named = {(pair["figures"]["encode"], pair["figures"]["prefill"]) for pair in pairs}
    assert len(named) == 4
    for figures in (pair["figures"] for pair in pairs):
        assert figures["transport"] == "CMA"
        assert figures["one_machine"] is True
        assert figures["tokens"] == (224 // 28) ** 2
        assert figures["rounds"] >= 2
        assert 0 < figures["latency_ms"] < 10_000
        assert figures["bytes"] > 0
        assert figures["write_s"] > 0


def test_the_pictures_count_as_no_failure(stack: LocalStack) -> None:
    before = statuses(stack, "prefill")
    assert checks_of(run(stack, "--graph", "--json", *SMALL, "--max-pairs", "1"))
    for then, now in zip(before, statuses(stack, "prefill"), strict=True):
        assert now["totals"]["reasons"] == then["totals"]["reasons"]
        assert now["refusals"] == then["refusals"]


def test_pairs_beyond_the_limit_are_left_out_and_told(stack: LocalStack) -> None:
    checks = checks_of(run(stack, "--graph", "--json", *SMALL, "--max-pairs", "1"))
    assert "1 of 4" in checks["further pairs"]["text"]
    assert len(pairs_in(checks)) == 2  # the pair, and that line


def test_a_processor_names_its_graph(stack: LocalStack) -> None:
    """Without the workers' DYN_NAMESPACE."""
    (url,) = stack.system_urls["processor"]
    arguments = ("--graph", "--json", "--no-transfers", "--processor")
    checks = checks_of(run(stack, *arguments, url, DYN_NAMESPACE="elsewhere"))
    assert checks["workers"]["outcome"] == "ok"
    assert pairs_in(checks) == []
    lost = checks_of(run(stack, *arguments[:-1], DYN_NAMESPACE="elsewhere"))
    assert lost["workers"]["outcome"] == "fail"
    assert "elsewhere" in lost["workers"]["text"]


@pytest.mark.parametrize("whose", ["frontend", "encode"])
def test_another_address_is_refused(stack: LocalStack, whose: str) -> None:
    url = stack.frontend_url if whose == "frontend" else stack.system_urls[whose][0]
    ran = run(stack, "--graph", "--json", "--processor", url)
    assert (ran.returncode, ran.stdout) == (2, "")
    error = ran.stderr.splitlines()[-1]
    assert "--processor" in error
    assert f"{url} is not the system port of a processor" in error


def test_it_runs_beside_a_worker_in_its_environment(stack: LocalStack) -> None:
    """As in a worker's container: its ports are taken."""
    port = stack.system_urls["encode"][0].rpartition(":")[2]
    ran = run(stack, "--graph", "--json", "--no-transfers", DYN_SYSTEM_PORT=port)
    assert checks_of(ran)["workers"]["outcome"] == "ok"


@pytest.mark.parametrize("name", ["encode-0", "prefill-0"])
def test_a_worker_that_hangs_is_named_and_not_waited_for(stack: LocalStack, name: str) -> None:
    with paused(stack, name):
        started = time.monotonic()
        ran = run(stack, "--graph", "--json", *SMALL)
        took_s = time.monotonic() - started
    answers_again(stack)
    checks = checks_of(ran)
    assert ran.returncode == 2
    assert checks["answers"]["outcome"] == "fail"
    assert name.partition("-")[0] in checks["answers"]["text"]
    assert "hangs" in checks["answers"]["text"]
    assert len(checks["answers"]["figures"]["silent"]) == 1
    assert [pair["outcome"] for pair in pairs_in(checks)] == ["ok"] * 2
    assert took_s < SOON_S


def test_advice_is_given_once_enough_was_seen(stack: LocalStack) -> None:
    urls = [data_url(patchwork(900 + i, 8, 8)) for i in range(4)]
    for _ in range(2 * ENOUGH // len(urls) + 2):
        assert ask(stack.base_url, MODEL_NAME, urls, "?", 1).ok
    checks = checks_of(run(stack, "--graph", "--json", "--no-transfers"))
    assert checks["default grant"]["figures"]["seen"] >= ENOUGH
    assert checks["default grant"]["figures"]["recommended_blocks"] >= 1
    assert checks["pool size"]["figures"]["peak_transfers"] >= len(urls)
    assert checks["pool size"]["outcome"] == "warn"  # eight blocks in all
    assert "--embedding-cache-buffer-size" in checks["pool size"]["action"]
