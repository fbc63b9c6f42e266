# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What long runs under load share: a deployment of a model made for it, and its memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from examples.local_stack import LocalStack
from tests.support.deployments import Deployment, Keeper
from tests.support.oracle import Oracle

ROOT = Path(__file__).parents[2]
SEED_OF_WEIGHTS = 1
SAMPLE_EVERY_S = 1.0


@contextmanager
def deployed(deployment: Deployment, folder: Path) -> Iterator[tuple[LocalStack, Oracle]]:
    """The deployment of a model with random weights, and transformers with the same; logs and
    model are in the folder.
    """
    model = folder / "model"
    build = ROOT / "examples" / "demo_model" / "build.py"
    command = [sys.executable, build, "--out", model, "--seed", str(SEED_OF_WEIGHTS)]
    subprocess.run(command, check=True, capture_output=True)
    keeper = Keeper({"random": model, "trained": model}, folder / "logs")
    try:
        yield keeper.get(deployment), Oracle(model)
    finally:
        keeper.stop()


@contextmanager
def sampled_memory(stack: LocalStack) -> Iterator[dict[str, int]]:
    """Peak memory of each process with its children in MiB, as seen once a second in the block."""
    peaks: dict[str, int] = {}
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_EVERY_S):
            for process in stack.processes:
                try:
                    mib = _family_mib(process.pid)
                except psutil.Error:
                    continue  # it ended in this moment
                peaks[process.name] = max(peaks.get(process.name, 0), mib)

    thread = threading.Thread(target=sample, name="memory-sampler")
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _family_mib(pid: int) -> int:
    """Unique memory of a process and its children."""
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return round(sum(member.memory_full_info().uss for member in family) / 2**20)
