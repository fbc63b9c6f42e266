# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's load generator runs against a graph as it is: examples/client/aiperf.sh.

Its pins contradict those of our environment: it has one of its own, which `make aiperf` creates.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from examples.local_stack import LocalStack
from tests.conftest import TRAINED_MODEL
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.worker_status import status

DEPLOYMENT = TRAINED

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "client" / "aiperf.sh"
OWN = ROOT / ".venv-aiperf" / "bin" / "aiperf"
TIMEOUT_S = 300.0
NUM_REQUESTS = 6

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (OWN.exists() or "AIPERF" in os.environ or shutil.which("aiperf")),
        reason="aiperf is not installed: `make aiperf`",
    ),
]


def test_aiperf_is_answered_in_full(stack: LocalStack, tmp_path: Path) -> None:
    before = status(stack, "processor")["totals"]["items"]
    figures = _profile(stack, tmp_path, "--warmup-request-count", "1")
    assert figures["request_count"]["avg"] == NUM_REQUESTS
    assert figures.get("error_request_count", {}).get("avg", 0) == 0
    assert figures["time_to_first_token"]["avg"] > 0
    assert status(stack, "processor")["totals"]["items"] == before + NUM_REQUESTS + 1


def _profile(stack: LocalStack, folder: Path, *flags: str) -> dict[str, dict[str, float]]:
    """What aiperf has measured."""
    small = ("--image-width-mean", "112", "--image-height-mean", "112")
    few = ("--request-count", str(NUM_REQUESTS), "--concurrency", "2")
    short = ("--synthetic-input-tokens-mean", "16", "--output-tokens-mean", "4")
    place = ("--artifact-dir", str(folder))
    outcome = subprocess.run(
        [SCRIPT, TRAINED_MODEL, stack.base_url, MODEL_NAME, *small, *few, *short, *place, *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        # Loopback only: whoever would download something finds nobody.
        env={**os.environ, "NO_PROXY": "*", "no_proxy": "*", "HF_ENDPOINT": "http://127.0.0.1:9"},
        cwd=folder,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    report = folder / "profile_export_aiperf.json"
    figures: dict[str, dict[str, float]] = json.loads(report.read_text())
    return figures
