# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A second processor of a running stack, which has one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil

from examples.local_stack import LocalStack, free_ports
from tests.support.worker_status import get, wait_until

READY_DEADLINE_S = 60.0
END_DEADLINE_S = 20.0


@contextmanager
def another_processor(
    stack: LocalStack, module: str | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process like the first one, or of another module, and its system server."""
    (first,) = [psutil.Process(p.pid) for p in stack.processes if p.name == "processor"]
    python, flag, same, *arguments = first.cmdline()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = first.environ() | {"DYN_SYSTEM_PORT": str(port)}
    with (stack.log_dir / "another-processor.log").open("ab") as log:
        process = subprocess.Popen(
            [python, flag, module or same, *arguments], env=environment, stdout=log, stderr=log
        )
    try:
        assert wait_until(lambda: _is_healthy(url), READY_DEADLINE_S)
        yield process, url
    finally:
        process.terminate()
        process.wait(END_DEADLINE_S)


def _is_healthy(url: str) -> bool:
    try:
        return get(f"{url}/health").is_success
    except httpx.TransportError:
        return False
