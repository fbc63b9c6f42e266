# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: right answers, and with `--keep` until Ctrl-C.

Without `--keep`: tests/packaging/test_installed.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.demo import assert_all_right
from tests.support.deployments import Keeper
from tests.support.worker_status import wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "examples/demo.py"]
DEADLINE_S = 300.0
CURL_DEADLINE_S = 60.0
END_DEADLINE_S = 60.0
CHILD_END_DEADLINE_S = 5.0
STAYS_UP = "Ctrl-C stops everything"


@pytest.fixture(autouse=True)
def nothing_else_runs(keeper: Keeper) -> None:
    """Two cores do not carry two deployments."""
    keeper.stop()


def test_kept_demo_answers_by_curl_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: the printed command cannot be tried")
    with _kept_demo(tmp_path / "output.txt") as demo:
        assert wait_until(lambda: STAYS_UP in demo.output or demo.has_ended, DEADLINE_S)
        assert_all_right(demo.output)
        answer = subprocess.run(
            ["bash", "-c", _printed_command(demo.output)],
            capture_output=True,
            timeout=CURL_DEADLINE_S,
            check=True,
            env={**os.environ, "NO_PROXY": "*", "no_proxy": "*"},
        )
        assert json.loads(answer.stdout)["choices"][0]["message"]["content"].strip()
        children = psutil.Process(demo.process.pid).children(recursive=True)
        assert len(children) >= 4, "the frontend and three workers, at least"
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(END_DEADLINE_S) == 0, demo.output
        assert wait_until(lambda: not any(map(_is_alive, children)), CHILD_END_DEADLINE_S)
    assert "All processes are stopped." in demo.output


@dataclass(frozen=True)
class _Demo:
    process: subprocess.Popen[bytes]
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None


@contextmanager
def _kept_demo(output_path: Path) -> Iterator[_Demo]:
    """The demo with `--keep`; asked to end, if it still runs, when the block is left."""
    with (
        output_path.open("wb") as output,
        subprocess.Popen(
            [*COMMAND, "--keep"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # A shell that starts the tests in the background has them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        try:
            yield _Demo(process, output_path)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(END_DEADLINE_S)


def _is_alive(process: psutil.Process) -> bool:
    """Not of a dead process that only waits for the system to collect it."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _printed_command(output: str) -> str:
    """From `curl` to the end of its second line."""
    lines = output.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith("curl ")]
    return "\n".join(lines[start : start + 2])
