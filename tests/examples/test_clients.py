# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""examples/client/ against a graph that runs: right answers, and an exit code for what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples.local_stack import LocalStack
from tests.conftest import TRAINED_MODEL
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.worker_status import status

DEPLOYMENT = TRAINED

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "examples" / "client"
PICTURES = ROOT / "examples" / "pictures"
QUESTIONS = json.loads((PICTURES / "questions.json").read_text())
LARGE = PICTURES / "large.png"
TIMEOUT_S = 240.0
NOBODY = "http://127.0.0.1:9/v1"
OPENAI_CLIENT = (sys.executable, CLIENT / "openai_client.py")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def test_openai_client_prints_the_answer_and_the_figures(stack: LocalStack) -> None:
    question = QUESTIONS[LARGE.name]["question"]
    outcome = _run(*OPENAI_CLIENT, LARGE, "--question", question, "--base-url", stack.base_url)
    assert outcome.returncode == 0, outcome.stderr
    assert QUESTIONS[LARGE.name]["answer"] in outcome.stdout
    assert re.search(
        r"^image_tokens 1600, video_tokens 0, rounds 2, bytes \d+, wait_ms ", outcome.stdout, re.M
    )


def test_openai_client_says_what_is_wrong(stack: LocalStack, tmp_path: Path) -> None:
    nothing = _run(*OPENAI_CLIENT, LARGE, "--base-url", NOBODY, "--timeout", "5")
    assert (nothing.returncode, nothing.stderr.startswith("error: ")) == (1, True)
    missing = _run(*OPENAI_CLIENT, "nowhere.png", "--base-url", stack.base_url)
    assert (missing.returncode, "nowhere.png" in missing.stderr) == (1, True)
    text = tmp_path / "text.png"
    text.write_text("This is no picture.")
    refused = _run(*OPENAI_CLIENT, text, "--base-url", stack.base_url)
    assert (refused.returncode, "send JPEG, PNG or WebP" in refused.stderr) == (1, True)


@needs_curl
def test_curl_gets_the_answer(stack: LocalStack) -> None:
    outcome = _run(CLIENT / "curl.sh", LARGE, stack.base_url)
    assert outcome.returncode == 0, outcome.stderr
    message = json.loads(outcome.stdout)["choices"][0]["message"]
    assert message["content"].strip() == QUESTIONS[LARGE.name]["answer"]


@needs_curl
def test_curl_shows_what_is_refused(stack: LocalStack) -> None:
    outcome = _run(CLIENT / "curl.sh", CLIENT / "curl.sh", stack.base_url, MODEL_NAME)
    assert outcome.returncode != 0
    assert "send JPEG, PNG or WebP" in outcome.stdout
    assert _run(CLIENT / "curl.sh").returncode == 2


def test_load_is_answered_in_full(stack: LocalStack) -> None:
    before = status(stack, "processor")["totals"]["items"]
    outcome = _load(stack, MODEL_NAME)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert re.search(r"^Successful requests: +6 *$", outcome.stdout, re.M)
    assert status(stack, "processor")["totals"]["items"] == before + 7, "one warms up"


@pytest.mark.nightly
def test_load_that_is_not_answered_ends_with_an_error(stack: LocalStack) -> None:
    outcome = _load(stack, "no-such-model")
    assert outcome.returncode != 0


def _load(stack: LocalStack, model_name: str) -> subprocess.CompletedProcess[str]:
    few = ("--num-prompts", "6", "--max-concurrency", "3", "--random-output-len", "4")
    small = ("--image-resolution", "112x112")
    url = stack.base_url.removesuffix("/v1")
    return _run(CLIENT / "load.sh", TRAINED_MODEL, url, model_name, *few, *small)


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "PATH": path, "NO_PROXY": "*", "no_proxy": "*"},
        check=False,
    )
