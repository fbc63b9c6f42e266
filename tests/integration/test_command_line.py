# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Each role's command line as an operator meets it: `--help`, and one clear line on a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.config import Settings, spec_of
from tests.support.deployments import Model

TIMEOUT_S = 180.0
AT_ONCE = 2
ROLES = ("processor", "encode_worker", "prefill_worker", "decode_worker")
WITH_ENGINE = ROLES[1:]
MODEL_PATH = "{model}"
UNSERVED_PATH = "{unserved}"
UNSERVED = "KimiVLForConditionalGeneration"


@dataclass(frozen=True)
class Line:
    """A command line of a role, and what the error about it must name."""

    role: str
    name: str
    arguments: tuple[str, ...]
    names: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.role}-{self.name}"


MODEL = ("--model-path", MODEL_PATH)
BLOCK_SIZE = ("--multimodal-block-size", "SGLANG_MULTIMODAL_BLOCK_SIZE")
PREFILLS, DECODES = [("--disaggregation-mode", mode) for mode in ("prefill", "decode")]
HELP = [Line(role, "help", ("--help",)) for role in ROLES]
MISTAKES = [
    Line("processor", "flag", (*MODEL, BLOCK_SIZE[0], "many"), (*BLOCK_SIZE, "'many'")),
    Line("processor", "variable", MODEL, (*BLOCK_SIZE, "0"), {BLOCK_SIZE[1]: "0"}),
    Line("processor", "unknown", (*MODEL, "--no-such-flag"), ("--no-such-flag",)),
    Line("processor", "value", (*MODEL, "--page-size", "big"), ("--page-size", "'big'")),
    Line("processor", "no-model", (), ("--model-path",)),
    Line("processor", "no-folder", ("--model-path", "/no/such"), ("--model-path", "/no/such")),
    Line("encode_worker", "variable", MODEL, (*BLOCK_SIZE, "'x'"), {BLOCK_SIZE[1]: "x"}),
    Line("encode_worker", "unknown", (*MODEL, "--no-such-flag"), ("--no-such-flag",)),
    Line("encode_worker", "no-model", (), ("--model-path",)),
    Line("prefill_worker", "flag", (*MODEL, BLOCK_SIZE[0], "-1"), (*BLOCK_SIZE, "-1")),
    Line("prefill_worker", "value", (*MODEL, "--tp-size", "two"), ("--tp-size", "'two'")),
    Line("prefill_worker", "no-model", (), ("--model-path",)),
    Line("prefill_worker", "mode", (*MODEL, *DECODES), (DECODES[0], "'decode'")),
    Line("decode_worker", "mode", (*MODEL, *PREFILLS), (PREFILLS[0], "'prefill'")),
    *(
        Line(role, "unserved", ("--model-path", UNSERVED_PATH), (UNSERVED, "Qwen3-VL-MoE"))
        for role in ROLES
    ),
]
#: It imports SGLang for seconds, to refuse what another one is seen to refuse.
SLOW = {
    *("decode_worker-help", "decode_worker-mode", "decode_worker-unserved"),
    *("encode_worker-unknown", "encode_worker-no-model", "prefill_worker-no-model"),
    "prefill_worker-unserved",
}

Run = subprocess.CompletedProcess[str]
Runs = dict[Line, "Future[Run]"]


def lines(chosen: list[Line]) -> pytest.MarkDecorator:
    """A test of each of these command lines."""
    marks = dict.fromkeys(SLOW, pytest.mark.nightly)
    cases = [pytest.param(c, id=str(c), marks=marks.get(str(c), ())) for c in chosen]
    return pytest.mark.parametrize("line", cases)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest,
    models: Mapping[Model, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Runs]:
    """Every command line that is asked for, two at a time: importing SGLang takes seconds."""
    unserved = tmp_path_factory.mktemp("unserved")
    (unserved / "config.json").write_text(json.dumps({"architectures": [UNSERVED]}))
    paths = {MODEL_PATH: str(models["random"]), UNSERVED_PATH: str(unserved)}
    tests = [test for test in request.session.items if test.path == request.path]
    wanted = {test.callspec.params["line"] for test in tests if isinstance(test, pytest.Function)}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures = {}
        for line in (*HELP, *MISTAKES):
            if line in wanted:
                arguments = [paths.get(argument, argument) for argument in line.arguments]
                futures[line] = threads.submit(_run, line.role, arguments, line.env)
        yield futures


@lines(HELP)
def test_help_documents_every_setting(runs: Runs, line: Line) -> None:
    run = runs[line].result()
    assert run.returncode == 0
    # Its lines may be wrapped anywhere.
    text = " ".join(run.stdout.split())
    for name, setting in Settings.model_fields.items():
        spec = spec_of(name)
        entry = text[text.index(f" {spec.flag}") :]
        ends = f"unit: {spec.unit} env var: {spec.env} | default: {setting.default}"
        assert ends in entry[: entry.index("default:") + 40], name


@lines([line for line in HELP if line.role in WITH_ENGINE])
def test_help_shows_the_flags_of_sglang_and_dynamo(runs: Runs, line: Line) -> None:
    text = runs[line].result().stdout
    for flag in ("--model-path", "--tp-size", "--mem-fraction-static", "--discovery-backend"):
        assert flag in text


@lines(MISTAKES)
def test_mistake_ends_with_one_line_that_names_it(runs: Runs, line: Line) -> None:
    run = runs[line].result()
    assert run.returncode == 2, "for a supervisor: starting it again would not help"
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    (error,) = [text for text in run.stderr.splitlines() if re.match(r"\S*error:", text)]
    assert run.stderr.splitlines()[-1] == error
    for name in line.names:
        assert name in error


def _run(role: str, arguments: list[str], env: dict[str, str]) -> Run:
    return subprocess.run(
        [sys.executable, "-m", f"dynamo.sglang_mm_resume.{role}", *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
