# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which of UCX's transports really work between two processes of this machine, and how fast.

Each is tried: two processes, as this one sees the machine, with a NIXL agent each and nothing but
the transport in question and tcp, which NIXL needs for its notifications.
"""

import asyncio
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from dynamo.sglang_mm_resume.doctor.carrier import Carrier, bandwidth, carrier, difference
from dynamo.sglang_mm_resume.doctor.report import Result, fail, ok, warn

#: Seconds for one trial: two processes that have torch, their agents, and 120 MiB.
LIMIT_S: Final = 60.0
_PEER: Final = "dynamo.sglang_mm_resume.doctor.peer"

CMA_ACTION: Final = (
    "CMA needs both processes in one PID namespace and of one user (containers: one pod with "
    "shareProcessNamespace, or hostPID), kernel.yama.ptrace_scope of at most 1, and no UCX_TLS "
    "that leaves cma out"
)
CUDA_IPC_ACTION: Final = (
    "cuda_ipc needs both processes in one PID namespace (containers: one pod with "
    "shareProcessNamespace, or hostPID) and no UCX_TLS that leaves it out; otherwise "
    "--mm-resume-pool-device cpu is faster"
)
RDMA_ACTION: Final = (
    "check that the port is ACTIVE (ibv_devinfo), that memory may be locked (IPC_LOCK), and that "
    "UCX_TLS and UCX_NET_DEVICES do not leave the device out"
)
TCP_ACTION: Final = "check UCX_NET_DEVICES and UCX_TLS: NIXL needs tcp for its notifications"
ACTIONS: Final[Mapping[Carrier, str]] = {
    Carrier.CMA: CMA_ACTION,
    Carrier.CUDA_IPC: CUDA_IPC_ACTION,
    Carrier.RDMA: RDMA_ACTION,
    Carrier.TCP: TCP_ACTION,
}


class TrialFailed(Exception):
    """The two processes could not exchange bytes; the text says how far they came."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting of UCX. `expected`: the transport that it is about; None: any but tcp will do."""

    name: str
    expected: Carrier | None
    device: str
    ucx: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a trial."""

    used: Carrier
    num_bytes: int
    seconds: float


def trials(has_gpu: bool, has_rdma: bool) -> list[Trial]:
    """What is worth trying here."""
    device = "cuda" if has_gpu else "cpu"
    from_gpu = ",cuda_copy" if has_gpu else ""
    found = [
        Trial("UCX: tcp", Carrier.TCP, "cpu", {"UCX_TLS": "tcp"}),
        Trial("UCX: CMA", Carrier.CMA, "cpu", {"UCX_TLS": "cma,tcp"}),
    ]
    if has_gpu:
        tls = {"UCX_TLS": "cuda_ipc,cuda_copy,tcp"}
        found.append(Trial("UCX: cuda_ipc", Carrier.CUDA_IPC, device, tls))
    if has_rdma:
        tls = {"UCX_TLS": f"ib{from_gpu},tcp"}
        found.append(Trial("UCX: RDMA", Carrier.RDMA, device, tls))
    return [*found, Trial("UCX: as configured", None, device)]


def judge(trial: Trial, found: Measured | TrialFailed) -> Result:
    """What a trial means for the workers here."""
    needed = trial.expected in (None, Carrier.TCP)
    if isinstance(found, TrialFailed):
        action = TCP_ACTION if trial.expected is None else ACTIONS[trial.expected]
        return (fail if needed else warn)(trial.name, str(found), action)
    figures = {
        "transport": found.used.value,
        "bytes": found.num_bytes,
        "seconds": round(found.seconds, 6),
    }
    speed = bandwidth(found.num_bytes, found.seconds)
    if trial.expected is None:
        return _as_configured(trial, found.used, speed, figures)
    if found.used is trial.expected:
        return ok(trial.name, speed, **figures)
    text = f"not usable here: UCX took {found.used} instead ({speed})"
    return warn(trial.name, text, ACTIONS[trial.expected], **figures)


def try_out(trial: Trial, limit_s: float = LIMIT_S) -> Measured | TrialFailed:
    """Start both processes, let them exchange bytes, end them."""
    try:
        with _two_processes(trial, time.monotonic() + limit_s) as (receiver, writer):
            writer.tell(receiver.hear())
            measured = writer.hear()
            receiver.tell({})
            arrived = receiver.hear()["arrived"]
            writer.tell({})
    except TrialFailed as error:
        return error
    if not arrived:
        return TrialFailed("the writes ended well, and their bytes did not arrive")
    memories = (measured["memory"],)
    used = carrier(
        measured["bytes"],
        difference(*reversed(measured["tcp"])),
        difference(*reversed(measured["rdma"])),
        one_machine=True,
        memories=memories,
    )
    return Measured(used, measured["bytes"], measured["seconds"])


def _as_configured(trial: Trial, used: Carrier, speed: str, figures: dict[str, Any]) -> Result:
    settings = {k: v for k, v in os.environ.items() if k.startswith("UCX_")}
    by = ", ".join(f"{k}={v}" for k, v in settings.items()) or "no UCX_ variable is set"
    if used is not Carrier.TCP:
        return ok(trial.name, f"{used}, {speed} ({by})", **figures)
    action = CUDA_IPC_ACTION if trial.device == "cuda" else CMA_ACTION
    text = f"falls back to tcp, {speed} ({by})"
    return warn(trial.name, text, action, **figures)


# --- Two processes ---


@dataclass(frozen=True, slots=True)
class _Peer:
    role: str
    process: BaseProcess
    connection: Connection
    deadline: float

    def tell(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise TrialFailed(f"the {self.role} is gone: {error}") from None

    def hear(self) -> dict[str, Any]:
        """Its next message. Raises `TrialFailed`: what it says, its end, or its silence."""
        patience_s = max(0.0, self.deadline - time.monotonic())
        ready = wait([self.connection, self.process.sentinel], patience_s)
        if not ready:
            raise TrialFailed(f"the {self.role} was silent until the time was over")
        try:
            message: dict[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1.0)
            code = self.process.exitcode
            raise TrialFailed(f"the {self.role} ended with exit code {code}") from None
        if "error" in message:
            raise TrialFailed(f"the {self.role} failed: {message['error']}")
        return message


@contextmanager
def _two_processes(trial: Trial, deadline: float) -> Iterator[tuple[_Peer, _Peer]]:
    """Receiver and writer; killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PEER])  # torch is imported once for all of them
    peers: list[_Peer] = []
    try:
        for role, main in (("receiver", "receive"), ("writer", "write")):
            ours, theirs = context.Pipe()
            arguments = (main, theirs, trial.device, dict(trial.ucx))
            process = context.Process(target=_run, args=arguments, daemon=True)
            process.start()
            theirs.close()
            peers.append(_Peer(role, process, ours, deadline))
        receiver, writer = peers
        yield receiver, writer
    finally:
        for peer in peers:
            peer.process.kill()
            peer.process.join()
            peer.connection.close()


def _run(main: str, connection: Connection, device: str, ucx: dict[str, str]) -> None:
    """In the process itself: UCX reads its settings when the agent is made."""
    os.environ.update(ucx)
    try:
        run: Callable[..., Any] = getattr(importlib.import_module(_PEER), main)
        asyncio.run(run(connection, device))
    except Exception as error:
        connection.send({"error": f"{type(error).__name__}: {error!s:.300}"})
