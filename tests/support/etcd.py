# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A real etcd on loopback, and what it knows of Dynamo's workers.

Needs the program `etcd` (Debian: etcd-server). Asked through its JSON gateway, so that etcdctl is
not needed.
"""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.worker_status import wait_until

PROGRAM = shutil.which("etcd")
MISSING = "etcd is not installed (Debian: apt-get install etcd-server)"

_START_DEADLINE_S = 30.0
_STOP_DEADLINE_S = 10.0
_TIMEOUT_S = 5.0


class Etcd:
    """One server with a folder of its own; a context manager. It may be killed and started again,
    with what it knew.
    """

    def __init__(self, folder: Path) -> None:
        client, peer = free_ports(2)
        self.url = f"http://127.0.0.1:{client}"
        self._peer_url = f"http://127.0.0.1:{peer}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert PROGRAM is not None, MISSING
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    PROGRAM,
                    *("--data-dir", self._folder / "data"),
                    *("--listen-client-urls", self.url),
                    *("--advertise-client-urls", self.url),
                    *("--listen-peer-urls", self._peer_url),
                    *("--initial-advertise-peer-urls", self._peer_url),
                    *("--initial-cluster", f"default={self._peer_url}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert wait_until(self._answers, _START_DEADLINE_S), "etcd does not answer"
        self._started_at = time.monotonic()

    def kill(self) -> None:
        """End it at once, as a crash would; harmless if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_DEADLINE_S)
            self._process = None

    def forget(self) -> None:
        """Lose what it knew, as a server in a container without a volume does."""
        shutil.rmtree(self._folder / "data")

    def runs_for(self, seconds: float) -> bool:
        """Whether the last start is so long ago."""
        return time.monotonic() - self._started_at > seconds

    def keys(self) -> list[str]:
        """Everything that is stored, by its keys."""
        everything = {"key": _encoded("\0"), "range_end": _encoded("\0"), "keys_only": True}
        found = self._ask("kv/range", everything).get("kvs", [])
        return sorted(base64.b64decode(each["key"]).decode() for each in found)

    def leases(self) -> dict[int, list[str]]:
        """Each lease, with the keys that end with it."""
        ids = [int(each["ID"]) for each in self._ask("lease/leases", {}).get("leases", [])]
        return {each: self._keys_of(each) for each in ids}

    def revoke(self, lease: int) -> None:
        """Take a lease away from its holder."""
        self._ask("lease/revoke", {"ID": str(lease)})

    def _keys_of(self, lease: int) -> list[str]:
        found = self._ask("lease/timetolive", {"ID": str(lease), "keys": True})
        return sorted(base64.b64decode(key).decode() for key in found.get("keys", []))

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/v3/{path}"
        answer = httpx.post(url, json=body, trust_env=False, timeout=_TIMEOUT_S)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def _answers(self) -> bool:
        try:
            self.keys()
        except httpx.HTTPError:
            return False
        return True


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
