# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A graph on this machine under load, and a Prometheus that scrapes it.

Everything is real and small: the demo's model, two encode workers, one prefill worker. Half-way
through, one encode worker is stopped (SIGSTOP) for a while, so that failures can be seen as well.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from examples.demo_model.pictures import ASK_LONG, sample
from examples.local_stack import LocalStack, StackConfig

HERE: Final = Path(__file__).resolve().parent
CONFIG: Final = HERE / "prometheus.yaml"
MODEL: Final = HERE.parents[1] / "examples" / "demo_model" / "weights"
MODEL_NAME: Final = "demo-vlm"

#: Cells of 112 pixels along a side, and how often pictures have so many: 16 to 1,024 tokens.
SIDES: Final = {1: 45, 4: 35, 6: 12, 8: 8}
TEXT_ONLY: Final = 0.15
SEEN_BEFORE: Final = 0.3
CLIENTS: Final = 3
MAX_TOKENS: Final = 12
REQUEST_DEADLINE_S: Final = 60.0

STOPPED: Final = "encode-1"
STOPPED_S: Final = 20.0

PROMETHEUS_DEADLINE_S: Final = 30.0
_POLL_S: Final = 0.1

#: Blocks small enough for waits, grants large enough for four of five pictures.
_POOL: Final = (
    *("--multimodal-block-size", "16"),
    *("--default-multimodal-blocks", "32"),
    *("--embedding-cache-buffer-size", "12"),
    *("--mm-heartbeat-interval", "2"),
)


def graph() -> StackConfig:
    """What is started."""
    return StackConfig(
        MODEL,
        MODEL_NAME,
        dtype="float32",
        num_encode=2,
        kv_events=True,
        processor_args=("--mm-heartbeat-interval", "2", "--router-mode", "kv"),
        encode_args=_POOL,
        prefill_args=_POOL,
        env={"OMP_NUM_THREADS": "1"},
    )


# --- Prometheus ---


class NoPrometheus(RuntimeError):
    """It is not installed, or did not start; the text says which."""


@contextmanager
def prometheus(targets: Sequence[str], folder: Path, every_s: float) -> Iterator[str]:
    """Scrape these system URLs with our own configuration and rules; gives its address."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise NoPrometheus("prometheus is not installed: it is a package of Debian's")
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(_configuration(targets, every_s)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait_until_ready(process, f"http://{address}")
        yield f"http://{address}"
    finally:
        process.terminate()
        try:
            process.wait(PROMETHEUS_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _configuration(targets: Sequence[str], every_s: float) -> dict[str, Any]:
    """Ours, for other targets and more often."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    every = f"{int(1000 * every_s)}ms"
    config["global"] = {"scrape_interval": every, "evaluation_interval": every}
    config["rule_files"] = [str(CONFIG.parent / name) for name in config["rule_files"]]
    addresses = [url.removeprefix("http://") for url in targets]
    config["scrape_configs"][0]["static_configs"] = [{"targets": addresses}]
    return config


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    give_up_at = time.monotonic() + PROMETHEUS_DEADLINE_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise NoPrometheus(f"prometheus ended with exit code {process.returncode}")
        try:
            with OPENER.open(f"{url}/-/ready", timeout=1.0):
                return
        except OSError:
            time.sleep(_POLL_S)
    raise NoPrometheus(f"prometheus was not ready within {PROMETHEUS_DEADLINE_S:g} s")


#: Loopback must not go through a proxy that the environment names.
OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# --- Load ---


async def load(stack: LocalStack, seconds: float, seed: int) -> Mapping[str, int]:
    """Ask until the time is over, with the fault half-way; how often which status came."""
    outcomes: Counter[str] = Counter()
    timeout = aiohttp.ClientTimeout(total=REQUEST_DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        clients = [
            asyncio.ensure_future(
                _client(session, stack.base_url, random.Random(seed + i), outcomes)
            )
            for i in range(CLIENTS)
        ]
        try:
            await asyncio.sleep(seconds / 2)
            stack.pause(STOPPED)
            try:
                await asyncio.sleep(STOPPED_S)
            finally:
                stack.unpause(STOPPED)
            await asyncio.sleep(max(0.0, seconds / 2 - STOPPED_S))
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    return outcomes


async def _client(
    session: aiohttp.ClientSession, base_url: str, chance: random.Random, outcomes: Counter[str]
) -> None:
    seen: list[bytes] = []
    while True:
        if seen and chance.random() < SEEN_BEFORE:
            body = chance.choice(seen)
        else:
            body = await asyncio.to_thread(_request, chance)
            seen.append(body)
        try:
            async with session.post(
                f"{base_url}/chat/completions",
                data=body,
                headers={"content-type": "application/json"},
            ) as response:
                await response.read()
                outcomes[str(response.status)] += 1
        except (TimeoutError, aiohttp.ClientError) as error:
            outcomes[type(error).__name__] += 1


def _request(chance: random.Random) -> bytes:
    """A question, about a new picture or about none."""
    content: list[dict[str, object]] = [{"type": "text", "text": ASK_LONG}]
    if chance.random() >= TEXT_ONLY:
        (side,) = chance.choices(list(SIDES), list(SIDES.values()))
        picture = sample(chance, columns=side, rows=side, question=ASK_LONG).image
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return json.dumps(
        {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
        }
    ).encode()
