# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The whole deployment on one machine: frontend, processor, encode, prefill and decode workers.

Every part is the real one, in its own process, and talks to the others over loopback; discovery is
a temporary folder instead of etcd. The demo, the tests and the benchmarks start it in this way:

    with LocalStack(StackConfig("path/to/model", "my-model")) as stack:
        stack.wait_ready(deadline_s=120)
        client = OpenAI(base_url=stack.base_url, api_key="unused")
"""

from __future__ import annotations

import atexit
import glob
import http.client
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, Self

MODULES = {
    "processor": "dynamo.sglang_mm_resume.processor",
    "encode": "dynamo.sglang_mm_resume.encode_worker",
    "prefill": "dynamo.sglang_mm_resume.prefill_worker",
    "decode": "dynamo.sglang_mm_resume.decode_worker",
}
"""Role of a worker to the module that `python -m` runs."""

CPU_ENGINE_ARGS = (
    *("--device", "cpu"),
    *("--attention-backend", "torch_native"),
    *("--mm-attention-backend", "sdpa"),
    *("--sampling-backend", "pytorch"),
    *("--cuda-graph-backend-decode", "disabled"),
    *("--cuda-graph-backend-prefill", "disabled"),
    "--disable-overlap-schedule",
    # Else an engine's scheduler asks for requests all the time, with a core of its own.
    "--sleep-on-idle",
)
# How prefill and decode workers hand over KV.
_KV_ARGS = ("--disaggregation-transfer-backend", "nixl")
# What SGLang does otherwise with the KV of a request that it sets aside needs a GPU.
_CPU_DECODE_ARGS = ("--disaggregation-decode-retraction-backup", "cpu_tensor")
_ACCELERATOR_FILES = (
    "/dev/nvidia[0-9]*",
    "/dev/dxg",
    "/dev/kfd",
    "/dev/dri/render*",
    "/dev/accel*",
)

# Dynamo reads DYN_SYSTEM_PORT as a signed 16-bit number. These are also below the range from which
# Linux takes the local ports of connections.
_PORTS = range(10_000, 32_768)

_POLL_S = 0.25
_HTTP_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 20.0
_TAIL_LINES = 30
_TAIL_BYTES = 32 * 1024


class StackError(RuntimeError):
    """A process ended by itself, or the stack did not become ready in time."""


@dataclass(frozen=True)
class StackConfig:
    """What to start. Everything has a default except for the model and the name it is served by."""

    model_path: str | Path
    model_name: str
    num_encode: int = 1
    num_prefill: int = 1
    num_decode: int = 0
    """0: the prefill workers answer."""
    with_processor: bool = True
    """False for a graph of other modules whose workers take the frontend's requests themselves."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Role, or name of one process, to what runs in place of the role's module in `MODULES`."""
    dtype: str | None = None
    """SGLang's `--dtype`; None leaves the choice to it."""
    max_total_tokens: int = 16384
    """KV cache of an engine in tokens; on the CPU only, a GPU's memory decides by itself."""
    frontend_module: str = "dynamo.frontend"
    """What runs as the frontend: Dynamo's own, or ours (`dynamo.sglang_mm_resume.frontend`)."""
    frontend_args: Sequence[str] = ()
    processor_args: Sequence[str] = ()
    encode_args: Sequence[str] = ()
    prefill_args: Sequence[str] = ()
    decode_args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of every process; wins over what this module sets."""
    env_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Role, or name of one process, to what is added to its environment alone."""
    log_dir: Path | None = None
    """One log file per process. None: a temporary folder, removed unless something failed."""
    kv_events: bool = False
    """Prefill workers tell routers which KV they have (SGLang's `--kv-events-config`)."""
    http_port: int = 0
    """Port of the frontend; 0 takes a free one."""


@dataclass(frozen=True)
class ProcessInfo:
    """A process of the stack, for messages and for tests that look at it from outside."""

    name: str
    pid: int
    log_path: Path


@dataclass(frozen=True)
class ProcessStatus:
    """One line of a progress display; `seconds` counts from the start of the process."""

    name: str
    state: Literal["starting", "ready", "stopped"]
    seconds: float


OnProgress = Callable[[Sequence[ProcessStatus]], None]


class LocalStack:
    """Starts and stops the processes; a context manager that leaves nothing running behind."""

    def __init__(self, config: StackConfig) -> None:
        """Choose ports and folders; nothing is started yet."""
        self._config = config
        self._model_name = config.model_name
        self._scratch = Path(tempfile.mkdtemp(prefix="mm-resume-"))
        self._log_dir = config.log_dir or self._scratch / "logs"
        self._log_dir.mkdir(parents=True, exist_ok=True)
        specs = _specs(config, self._scratch / "discovery")
        self._children = {
            spec.name: _Child(spec, self._log_dir / f"{spec.name}.log") for spec in specs
        }
        self._failed = False
        self._handlers = ExitStack()

    # --- Life ---

    def start(self) -> None:
        """Start all processes at once, without waiting for any."""
        atexit.register(self.stop)
        self._handlers.enter_context(_sigterm_exits())
        with _signals_deferred():
            for child in self._children.values():
                child.start()

    def wait_ready(self, deadline_s: float, on_progress: OnProgress | None = None) -> None:
        """Wait until the frontend serves the model and every worker says that it is healthy.

        Raises StackError at once when a process ends, and after `deadline_s` seconds. Processes
        stopped by `kill` or `terminate` are not waited for.
        """
        give_up_at = time.monotonic() + deadline_s
        while True:
            self.check()
            waiting_for = self._unready()
            if on_progress is not None:
                on_progress(self.status())
            if not waiting_for:
                return
            if time.monotonic() > give_up_at:
                raise self._late(deadline_s, waiting_for)
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raise StackError, with the end of its log, when a process has ended by itself."""
        for child in self._children.values():
            if child.running and child.has_exited():
                self._failed = True
                code = child.reap()
                raise StackError(f"{child.name} ended with exit code {code}\n{child.log_tail()}")

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Ask every process to end, wait for it, and kill what is left of its process group."""
        running = [child for child in self._children.values() if child.running]
        try:
            for child in running:
                child.signal(signal.SIGTERM)
            _wait_until_exited(running, timeout_s)
        finally:
            for child in running:
                child.reap()
        self._handlers.close()
        atexit.unregister(self.stop)
        self._remove_scratch()

    def __enter__(self) -> Self:
        """Start; see `start`."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; logs are kept when the body failed."""
        self._failed = self._failed or (kind is not None and issubclass(kind, Exception))
        self.stop()

    # --- One process ---

    def kill(self, name: str) -> None:
        """End a process and all of its children the hard way, as a crash of the machine would."""
        child = self._children[name]
        child.signal_group(signal.SIGKILL)
        child.reap()

    def terminate(self, name: str, timeout_s: float = _STOP_TIMEOUT_S) -> int:
        """Ask a process to end and wait for it; returns its exit code (negative: a signal)."""
        child = self._children[name]
        child.signal(signal.SIGTERM)
        _wait_until_exited([child], timeout_s)
        return child.reap()

    def restart(self, name: str) -> None:
        """Start a process again with the same ports, ending it first where it still runs."""
        if self._children[name].running:
            self.terminate(name)
        with _signals_deferred():
            self._children[name].start()

    def pause(self, name: str) -> None:
        """Stop a process and its children where they are (SIGSTOP), as a hang would."""
        self._children[name].signal_group(signal.SIGSTOP)

    def unpause(self, name: str) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._children[name].signal_group(signal.SIGCONT)

    def log_tail(self, name: str) -> str:
        """The last lines that a process has written."""
        return self._children[name].log_tail()

    # --- What there is ---

    @property
    def base_url(self) -> str:
        """Address for an OpenAI client."""
        return f"{self.frontend_url}/v1"

    @property
    def frontend_url(self) -> str:
        """Root of the frontend's HTTP server."""
        return self._children["frontend"].spec.url

    @property
    def system_urls(self) -> dict[str, list[str]]:
        """Role to the system servers (`/health`, `/live`, `/metrics`) of its processes."""
        urls: dict[str, list[str]] = {}
        for child in self._children.values():
            if child.spec.role != "frontend":
                urls.setdefault(child.spec.role, []).append(child.spec.url)
        return urls

    @property
    def worker_urls(self) -> dict[str, str]:
        """Name to the system server of each process but the frontend."""
        return {
            child.name: child.spec.url
            for child in self._children.values()
            if child.spec.role != "frontend"
        }

    @property
    def processes(self) -> list[ProcessInfo]:
        """The processes that were started and not stopped since."""
        return [
            ProcessInfo(child.name, child.pid, child.log_path)
            for child in self._children.values()
            if child.running
        ]

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment of the processes; another program in it finds and reaches them."""
        return self._children["frontend"].spec.env

    @property
    def log_dir(self) -> Path:
        """Where the logs are."""
        return self._log_dir

    def status(self) -> list[ProcessStatus]:
        """The state of every process, as the last poll of `wait_ready` saw it."""
        return [child.status() for child in self._children.values()]

    # --- Internals ---

    def _unready(self) -> list[str]:
        """Ask everybody; names of what is not ready yet."""
        waiting_for = [
            child.name
            for child in self._children.values()
            if child.running and not child.probe_ready()
        ]
        # A frontend may list a model before it can reach the processor.
        if "frontend" not in waiting_for and _get(self._readiness_url) is None:
            waiting_for.append(f"model {self._model_name}")
        return waiting_for

    @property
    def _readiness_url(self) -> str:
        return f"{self.base_url}/models/{urllib.parse.quote(self._model_name)}/ready"

    def _late(self, deadline_s: float, waiting_for: Sequence[str]) -> StackError:
        self._failed = True
        lines = [f"not ready after {deadline_s:g} s: {', '.join(waiting_for)}"]
        topology = _get(self._readiness_url, statuses=(200, 503))
        if topology is not None:
            lines.append(f"frontend: {topology}")
        lines += [self._children[name].log_tail() for name in waiting_for if name in self._children]
        return StackError("\n".join(lines))

    def _remove_scratch(self) -> None:
        """Remove the temporary folder, except for logs that tell of a failure."""
        if self._failed and self._log_dir.is_relative_to(self._scratch):
            shutil.rmtree(self._scratch / "discovery", ignore_errors=True)
        else:
            shutil.rmtree(self._scratch, ignore_errors=True)


# --- What to run ---


@dataclass(frozen=True)
class _Ports:
    """Of one process: its HTTP server, where the ranks of an engine meet, and its KV events."""

    server: int
    engine: int
    kv_events: int


@dataclass(frozen=True)
class _Spec:
    """A process before it runs; `url` is its system server, or the frontend's HTTP server."""

    name: str
    role: str
    command: Sequence[str]
    env: Mapping[str, str]
    url: str


def _specs(config: StackConfig, discovery: Path) -> list[_Spec]:
    names = ["frontend"]
    names += ["processor"] if config.with_processor else []
    names += [f"encode-{i}" for i in range(config.num_encode)]
    names += [f"prefill-{i}" for i in range(config.num_prefill)]
    names += [f"decode-{i}" for i in range(config.num_decode)]
    free = iter(free_ports(3 * len(names)))
    ports = {name: _Ports(next(free), next(free), next(free)) for name in names}
    if config.http_port:
        ports["frontend"] = replace(ports["frontend"], server=config.http_port)
    on_cpu = not _has_accelerator()
    common_env = _environment(config, discovery, on_cpu)
    return [_spec(config, name, ports[name], common_env, on_cpu) for name in names]


def _spec(
    config: StackConfig, name: str, ports: _Ports, common_env: Mapping[str, str], on_cpu: bool
) -> _Spec:
    role = name.partition("-")[0]
    is_frontend = role == "frontend"
    modules = {"frontend": config.frontend_module, **MODULES, **config.modules}
    module = modules.get(name) or modules[role]
    return _Spec(
        name=name,
        role=role,
        command=[sys.executable, "-m", module, *_arguments(config, role, ports, on_cpu)],
        env={
            **({} if is_frontend else {"DYN_SYSTEM_PORT": str(ports.server)}),
            **common_env,
            **config.env_of.get(role, {}),
            **config.env_of.get(name, {}),
        },
        url=f"http://127.0.0.1:{ports.server}",
    )


def _arguments(config: StackConfig, role: str, ports: _Ports, on_cpu: bool) -> list[str]:
    if role == "frontend":
        port = str(ports.server)
        return ["--http-host", "127.0.0.1", "--http-port", port, *config.frontend_args]
    args = ["--model-path", str(config.model_path), "--served-model-name", config.model_name]
    if role == "processor":
        args += ["--decode-workers"] if config.num_decode else []
        return [*args, *config.processor_args]
    args += CPU_ENGINE_ARGS if on_cpu else ()
    args += ["--dtype", config.dtype] if config.dtype else []
    if role == "encode":
        return [*args, *config.encode_args]
    args += ["--max-total-tokens", str(config.max_total_tokens)] if on_cpu else []
    # Left to itself, SGLang chooses one long before it listens: others may have taken it by then.
    # Data-parallel ranks need one each, and would all take this one.
    args += [] if "--dp-size" in config.prefill_args else ["--nccl-port", str(ports.engine)]
    args += _KV_ARGS if config.num_decode else ()
    if role == "decode":
        args += _CPU_DECODE_ARGS if on_cpu else ()
        return [*args, *config.decode_args]
    args += ["--disaggregation-mode", "prefill"] if config.num_decode else []
    if config.kv_events:
        # SGLang listens only if there is a wildcard; elsewhere it would connect, like its reader.
        events = {"publisher": "zmq", "endpoint": f"tcp://*:{ports.kv_events}"}
        args += ["--kv-events-config", json.dumps(events)]
    return [*args, *config.prefill_args]


def _environment(config: StackConfig, discovery: Path, on_cpu: bool) -> dict[str, str]:
    """Environment of every process: loopback only, nobody else's discovery, readable logs."""
    env = dict(os.environ)
    # Without byte code on disk every process compiles thousands of files again, on every start.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    # A port that the caller's own shell has set would be taken by the first of our processes.
    env.pop("DYN_SYSTEM_PORT", None)
    env |= {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(discovery),
        "DYN_NAMESPACE": f"local{os.getpid()}x{secrets.token_hex(3)}",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_EVENT_PLANE_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "SGLANG_HOST_IP": "127.0.0.1",
        # Nobody else routes to these workers: there is no one to wait for before they stop.
        "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0",
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if Path(config.model_path).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if on_cpu:
        # The first request would otherwise wait for a C++ compiler, for seconds.
        env["TORCH_COMPILE_DISABLE"] = "1"
        # Several processes share few cores: OpenMP threads that spin would take each other's time.
        env["OMP_WAIT_POLICY"] = "PASSIVE"
    return env | config.env


def _has_accelerator() -> bool:
    """Whether torch sees an accelerator; torch is only imported where a device file suggests it."""
    if not any(glob.glob(pattern) for pattern in _ACCELERATOR_FILES):
        return False
    import torch

    return torch.cuda.is_available() or torch.accelerator.is_available()


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different, in random order."""
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(ports) == count:
            return ports
        if _is_free(port):
            ports.append(port)
    raise StackError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # Like the servers do: a connection of an earlier run that is still closing is no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


# --- Processes ---


class _Child:
    """One process and its process group, from one start to the next."""

    def __init__(self, spec: _Spec, log_path: Path) -> None:
        self.spec = spec
        self.name = spec.name
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._ready_after_s: float | None = None

    @property
    def running(self) -> bool:
        """Started and not reaped yet; it may have exited by itself."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Id of the process, which is the id of its process group as well."""
        if self._process is None:
            raise StackError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Start in a session of its own, so that its children can be ended together with it."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.spec.command,
                env=self.spec.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        self._ready_after_s = None

    def has_exited(self) -> bool:
        """Whether it has ended. Does not reap it: its id stays reserved until `reap`."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, options) is not None

    def signal(self, number: int) -> None:
        """Signal the process alone."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal the process and its children."""
        os.killpg(self.pid, number)

    def reap(self) -> int:
        """Kill what is left of the group and collect the exit code.

        In this order: until it is collected, nobody else can have the id of the group.
        """
        self.signal_group(signal.SIGKILL)
        assert self._process is not None
        code = self._process.wait()
        self._process = None
        return code

    def probe_ready(self) -> bool:
        """Ask it over HTTP whether it is ready."""
        path = "/v1/models" if self.spec.role == "frontend" else "/health"
        ready = _get(self.spec.url + path) is not None
        if not ready:
            self._ready_after_s = None
        elif self._ready_after_s is None:
            self._ready_after_s = time.monotonic() - self._started_at
        return ready

    def status(self) -> ProcessStatus:
        """For a progress display."""
        if not self.running:
            return ProcessStatus(self.name, "stopped", 0.0)
        if self._ready_after_s is not None:
            return ProcessStatus(self.name, "ready", self._ready_after_s)
        return ProcessStatus(self.name, "starting", time.monotonic() - self._started_at)

    def log_tail(self) -> str:
        """The last lines of its log, under the log's path."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join([f"--- {self.log_path}", *lines[-_TAIL_LINES:]])


def _wait_until_exited(children: Sequence[_Child], timeout_s: float) -> None:
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at and not all(child.has_exited() for child in children):
        time.sleep(0.05)


# --- Signals ---


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold back Ctrl-C while processes start: one that nobody has noted yet could not be ended.

    Not by a signal mask, which the processes would inherit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this program the regular way, so that it can clean up."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if in_main_thread and signal.getsignal(number) is signal.SIG_DFL
    ]

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


# --- HTTP ---

# Loopback must not go through a proxy that the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(url: str, statuses: Container[int] = (200,)) -> str | None:
    """Body of a GET that is answered with one of these statuses, else None."""
    try:
        with _OPENER.open(url, timeout=_HTTP_TIMEOUT_S) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode() if error.code in statuses else None
    except (OSError, http.client.HTTPException):
        return None
