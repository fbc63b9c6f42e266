# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""examples/launch/*.sh as a user runs them: a graph that answers, and nothing left afterwards."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from examples import local_stack
from tests.conftest import TRAINED_MODEL
from tests.support.client import Answer, ask
from tests.support.deployments import Keeper
from tests.support.worker_status import get, wait_until

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"
PICTURES = ROOT / "examples" / "pictures"
QUESTIONS = json.loads((PICTURES / "questions.json").read_text())
SMALL, LARGE = "small.png", "large.png"

MODEL_NAME = "launched"
READY_DEADLINE_S = 300.0
END_DEADLINE_S = 90.0
SEEN_DEADLINE_S = 10.0
PORTS = range(12_000, 30_000)
#: The frontend's, those of at most six workers, and as many a hundred further on.
PORTS_EACH = 8
INTERRUPTED, TERMINATED = 130, 143


@dataclass(frozen=True)
class Graph:
    """A script that runs."""

    script: psutil.Process
    output_path: Path
    http_port: int
    system_port: int

    @property
    def output(self) -> str:
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    def ask(self, picture: str) -> Answer:
        """The question of a picture of the examples."""
        content = (PICTURES / picture).read_bytes()
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return ask(self.base_url, MODEL_NAME, [url], QUESTIONS[picture]["question"], 48)

    def status(self, worker: int) -> dict[str, Any]:
        """Of the worker that was started after so many others."""
        url = f"http://127.0.0.1:{self.system_port + worker}/engine/mm_resume/status"
        answer = httpx.post(url, json={}, trust_env=False, timeout=SEEN_DEADLINE_S)
        state: dict[str, Any] = answer.json()
        return state


@dataclass(frozen=True)
class Case:
    """A script, the roles of its workers in order of their system ports, and how it is ended."""

    script: str
    roles: tuple[str, ...]
    end: Callable[[Graph], None]
    exit_code: int

    def __str__(self) -> str:
        return self.script


def interrupt(graph: Graph) -> None:
    """As Ctrl-C does."""
    graph.script.send_signal(signal.SIGINT)


def terminate(graph: Graph) -> None:
    graph.script.terminate()


def lose_a_worker(graph: Graph) -> None:
    """One is killed."""
    (worker, *_) = [child for child in graph.script.children() if _runs(child, "prefill_worker")]
    worker.kill()


CASES = [
    Case("e_p_d.sh", ("processor", "encode", "prefill", "decode"), terminate, TERMINATED),
    Case("e_pd.sh", ("processor", "encode", "prefill"), interrupt, INTERRUPTED),
    Case(
        "two_by_two.sh",
        ("processor", "encode", "encode", "prefill", "prefill"),
        lose_a_worker,
        128 + signal.SIGKILL,
    ),
    Case("text_only.sh", ("processor", "prefill"), interrupt, INTERRUPTED),
    Case("index_based.sh", ("processor", "encode", "prefill"), interrupt, INTERRUPTED),
]


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_graph_answers_and_leaves_nothing(keeper: Keeper, tmp_path: Path, case: Case) -> None:
    keeper.stop()  # two cores do not carry two
    with launched(case.script, tmp_path) as graph:
        assert wait_until(lambda: _is_ready_or_over(graph), READY_DEADLINE_S), graph.output
        assert graph.script.is_running(), graph.output
        for number, role in enumerate(case.roles):
            assert graph.status(number)["role"] == role
            assert get(f"http://127.0.0.1:{graph.system_port + number}/health").status_code == 200
        _assert_answers(graph, case)
        children = graph.script.children(recursive=True)
        case.end(graph)
        assert graph.script.wait(END_DEADLINE_S) == case.exit_code, graph.output
        assert wait_until(lambda: not any(map(_is_alive, children)), SEEN_DEADLINE_S)
    assert graph.output.endswith("all processes are stopped\n")
    assert list((tmp_path / "scratch").glob("mm-resume-*")) == []  # others leave files of their own


def test_every_script_is_tried() -> None:
    scripts = {path.name for path in LAUNCH.glob("*.sh")} - {"common.sh"}
    assert scripts == {case.script for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.script)
def test_help_says_what_it_starts(case: Case) -> None:
    outcome = _run(case.script, "--help")
    assert outcome.returncode == 0
    assert re.search(r"GPUs: \d", outcome.stdout)
    assert "--model-path PATH" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--http-port", "many"], "--http-port: many is no port"),
        (["--http-port", "65536"], "--http-port: 65536 is no port"),
        (["--system-port", "0"], "--system-port: 0 is no port"),
        (["--model-path"], "--model-path needs a value"),
        (["--modelpath", "x"], "unknown option --modelpath"),
    ],
)
def test_mistakes_are_refused_in_a_line(arguments: list[str], says: str) -> None:
    outcome = _run("e_pd.sh", *arguments)
    assert outcome.returncode == 2
    assert outcome.stderr.count("\n") == 1
    assert says in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize("name", ["CPU_ENGINE_ARGS", "_CPU_DECODE_ARGS"])
def test_engines_run_on_a_cpu_with_the_flags_of_the_local_stack(name: str) -> None:
    text = (LAUNCH / "common.sh").read_text()
    assert " ".join(getattr(local_stack, name)) in re.sub(r"\s+", " ", text)


@contextmanager
def launched(script: str, folder: Path) -> Iterator[Graph]:
    """The script, on the demo model and ports of its own; nothing of it survives the block."""
    http_port, system_port = free_ports()
    scratch = folder / "scratch"
    scratch.mkdir()
    output_path = folder / "output.txt"
    command = [
        *(LAUNCH / script, "--model-path", TRAINED_MODEL, "--served-model-name", MODEL_NAME),
        *("--http-port", str(http_port), "--system-port", str(system_port)),
    ]
    with output_path.open("wb") as output:
        process = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**_environment(), "TMPDIR": str(scratch)},
            preexec_fn=_default_signals,
        )
    try:
        yield Graph(process, output_path, http_port, system_port)
    finally:
        survivors = [*process.children(recursive=True), process] if process.is_running() else []
        for survivor in survivors:
            survivor.kill()
        process.wait()


def _assert_answers(graph: Graph, case: Case) -> None:
    small = graph.ask(SMALL)
    assert small.ok, small.raw
    assert small.text.strip() == QUESTIONS[SMALL]["answer"]
    assert ask(graph.base_url, MODEL_NAME, [], "What is this?", 4).ok
    if case.script == "text_only.sh":
        assert small.engine_data is None or "mm_resume" not in small.engine_data
        return
    assert small.engine_data is not None
    assert small.engine_data["mm_resume"]["rounds"] == 1
    large = graph.ask(LARGE)
    assert large.text.strip() == QUESTIONS[LARGE]["answer"]
    assert large.engine_data is not None
    rounds = large.engine_data["mm_resume"]["rounds"]
    assert rounds == 1 if case.script == "index_based.sh" else rounds > 1


def _is_ready_or_over(graph: Graph) -> bool:
    return "\nready: " in graph.output or not _is_alive(graph.script)


def _runs(process: psutil.Process, module: str) -> bool:
    return any(argument.endswith(module) for argument in process.cmdline())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        timeout=SEEN_DEADLINE_S,
        env=_environment(),
        check=False,
    )


def _environment() -> dict[str, str]:
    """With this interpreter as `python`, and no settings of the caller's for the graph."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
    folder = Path(sys.executable).parent
    return {**ours, "PATH": f"{folder}:{os.environ['PATH']}"}


def _default_signals() -> None:
    """A shell that starts with SIGINT ignored, as in the background, cannot trap it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_ports() -> tuple[int, int]:
    """One, and the first of a row of free ones."""
    while True:
        http_port = random.choice(PORTS)
        near = range(http_port, http_port + PORTS_EACH)
        if all(local_stack._is_free(port) for port in (*near, *(p + 100 for p in near))):
            return http_port, http_port + 1
