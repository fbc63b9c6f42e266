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
class Mistake:
    """A command line, and what the line about it must name."""

    role: str
    name: str
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, hash=False)


MODEL = ("--model-path", MODEL_PATH)
BLOCK_SIZE = ("--multimodal-block-size", "SGLANG_MULTIMODAL_BLOCK_SIZE")
PREFILLS, DECODES = [("--disaggregation-mode", mode) for mode in ("prefill", "decode")]
MISTAKES = [
    Mistake("processor", "flag", (*MODEL, BLOCK_SIZE[0], "many"), (*BLOCK_SIZE, "'many'")),
    Mistake("processor", "variable", MODEL, (*BLOCK_SIZE, "0"), {BLOCK_SIZE[1]: "0"}),
    Mistake("processor", "unknown", (*MODEL, "--no-such-flag"), ("--no-such-flag",)),
    Mistake("processor", "value", (*MODEL, "--page-size", "big"), ("--page-size", "'big'")),
    Mistake("processor", "no-model", (), ("--model-path",)),
    Mistake("processor", "no-folder", ("--model-path", "/no/such"), ("--model-path", "/no/such")),
    Mistake("encode_worker", "variable", MODEL, (*BLOCK_SIZE, "'x'"), {BLOCK_SIZE[1]: "x"}),
    Mistake("encode_worker", "unknown", (*MODEL, "--no-such-flag"), ("--no-such-flag",)),
    Mistake("encode_worker", "no-model", (), ("--model-path",)),
    Mistake("prefill_worker", "flag", (*MODEL, BLOCK_SIZE[0], "-1"), (*BLOCK_SIZE, "-1")),
    Mistake("prefill_worker", "value", (*MODEL, "--tp-size", "two"), ("--tp-size", "'two'")),
    Mistake("prefill_worker", "no-model", (), ("--model-path",)),
    Mistake("prefill_worker", "mode", (*MODEL, *DECODES), (DECODES[0], "'decode'")),
    Mistake("decode_worker", "mode", (*MODEL, *PREFILLS), (PREFILLS[0], "'prefill'")),
]

MISTAKES += [
    Mistake(role, "unserved", ("--model-path", UNSERVED_PATH), (UNSERVED, "Qwen3-VL-MoE"))
    for role in ROLES
]

Run = subprocess.CompletedProcess[str]
Runs = dict[str, "Future[Run]"]


@pytest.fixture(scope="module")
def runs(models: Mapping[Model, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Every command line of this module, two at a time: importing SGLang takes seconds."""
    unserved = tmp_path_factory.mktemp("unserved")
    (unserved / "config.json").write_text(json.dumps({"architectures": [UNSERVED]}))
    paths = {MODEL_PATH: str(models["random"]), UNSERVED_PATH: str(unserved)}
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures = {f"{role}-help": threads.submit(_run, role, ["--help"], {}) for role in ROLES}
        for mistake in MISTAKES:
            arguments = [paths.get(argument, argument) for argument in mistake.arguments]
            future = threads.submit(_run, mistake.role, arguments, mistake.env)
            futures[f"{mistake.role}-{mistake.name}"] = future
        yield futures


@pytest.mark.parametrize("role", ROLES)
def test_help_documents_every_setting(runs: Runs, role: str) -> None:
    run = runs[f"{role}-help"].result()
    assert run.returncode == 0
    # Its lines may be wrapped anywhere.
    text = " ".join(run.stdout.split())
    for name, setting in Settings.model_fields.items():
        spec = spec_of(name)
        entry = text[text.index(f" {spec.flag}") :]
        ends = f"unit: {spec.unit} env var: {spec.env} | default: {setting.default}"
        assert ends in entry[: entry.index("default:") + 40], name


@pytest.mark.parametrize("role", WITH_ENGINE)
def test_help_shows_the_flags_of_sglang_and_dynamo(runs: Runs, role: str) -> None:
    text = runs[f"{role}-help"].result().stdout
    for flag in ("--model-path", "--tp-size", "--mem-fraction-static", "--discovery-backend"):
        assert flag in text


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.role}-{mistake.name}")
def test_mistake_ends_with_one_line_that_names_it(runs: Runs, mistake: Mistake) -> None:
    run = runs[f"{mistake.role}-{mistake.name}"].result()
    assert run.returncode not in (0, None)
    assert run.stdout == ""
    assert "Traceback" not in run.stderr
    errors = [line for line in run.stderr.splitlines() if re.match(r"\S*error:", line)]
    (line,) = errors
    assert run.stderr.splitlines()[-1] == line
    for name in mistake.names:
        assert name in line


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
