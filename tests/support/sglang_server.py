# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's own HTTP server, one process with everything in it: what our answers are measured by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from examples.local_stack import CPU_ENGINE_ARGS, free_ports

_READY_DEADLINE_S = 240.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.25
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "SGLANG_HOST_IP": "127.0.0.1",
    "TORCH_COMPILE_DISABLE": "1",
}


@contextmanager
def sglang_server(
    model_path: Path, model_name: str, log: Path, arguments: Sequence[str] = ()
) -> Iterator[str]:
    """Serve a model on loopback; yields the address for an OpenAI client."""
    port, nccl_port = free_ports(2)
    command = [
        *(sys.executable, "-m", "sglang.launch_server"),
        *("--model-path", str(model_path), "--served-model-name", model_name),
        *("--host", "127.0.0.1", "--port", str(port), "--nccl-port", str(nccl_port)),
        *(*CPU_ENGINE_ARGS, "--dtype", "float32", "--max-total-tokens", "16384"),
        *("--enable-multimodal", "--enable-cache-report", *arguments),
    ]
    environment = {**os.environ, **_ENVIRONMENT}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # ended together with its children
        )
    try:
        _wait_ready(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(server)


def _wait_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    give_up_at = time.monotonic() + _READY_DEADLINE_S
    while not _answers(url):
        if server.poll() is not None or time.monotonic() > give_up_at:
            tail = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"SGLang's server is not ready\n{tail}")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
