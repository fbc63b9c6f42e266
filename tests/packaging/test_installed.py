# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution, installed beside ai-dynamo into an environment of their
own, run from there: single commands, and the whole graph of the demo.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.demo import assert_all_right
from tests.support.deployments import Keeper
from tests.support.installation import ROOT, Environment

PACKAGE = ROOT / "components" / "src" / "dynamo" / "sglang_mm_resume"
TIMEOUT_S = 300
DEMO_TIMEOUT_S = 480

pytestmark = pytest.mark.timeout(TIMEOUT_S)

IMPORTS = """
import importlib, json, pkgutil
import dynamo
from importlib.metadata import entry_points, version
import dynamo.frontend, dynamo.runtime
import sglang  # before ours: our platform is a plug-in of it
import dynamo.sglang_mm_resume as ours

names = [
    each.name for each in pkgutil.walk_packages(ours.__path__, "dynamo.sglang_mm_resume.")
    if not each.name.endswith(".__main__")
]
modules = {name: importlib.import_module(name).__file__ for name in names}
groups = {
    group: [
        point.load().__module__
        for point in entry_points(group=group)
        if "mm_resume" in point.value
    ]
    for group in ("sglang.srt.platforms", "sglang.srt.plugins")
}
print(json.dumps({
    "modules": modules,
    "groups": groups,
    "is_namespace": getattr(dynamo, "__file__", None) is None,
    "version": version("dynamo-sglang-mm-resume"),
}))
"""


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.suffix != ".pyc" and path.name != ".gitignore"
    }


@pytest.fixture(scope="module")
def runs(with_wheel: Environment) -> Iterator[dict[str, subprocess.CompletedProcess[str]]]:
    """Importing SGLang takes seconds: two at a time."""
    commands = {
        "imports": ("-c", IMPORTS),
        "processor": ("-m", "dynamo.sglang_mm_resume.processor", "--help"),
        "encode": ("-m", "dynamo.sglang_mm_resume.encode_worker", "--help"),
        "frontend": ("-m", "dynamo.sglang_mm_resume.frontend", "--help"),
        "no role": ("-m", "dynamo.sglang_mm_resume"),
    }
    with ThreadPoolExecutor(2) as threads:
        started = {
            name: threads.submit(with_wheel.run, *command) for name, command in commands.items()
        }
        yield {name: each.result() for name, each in started.items()}


@pytest.mark.parametrize("kind", ["with_wheel", "with_sdist"])
def test_what_is_installed_is_this_tree(kind: str, request: pytest.FixtureRequest) -> None:
    environment: Environment = request.getfixturevalue(kind)
    assert files(environment.packages / "dynamo" / "sglang_mm_resume") == files(PACKAGE)


@pytest.mark.parametrize("kind", ["with_wheel", "with_sdist"])
def test_it_runs(kind: str, request: pytest.FixtureRequest) -> None:
    """As far as arguments are read: there is no model here."""
    environment: Environment = request.getfixturevalue(kind)
    refused = environment.run("-m", "dynamo.sglang_mm_resume.processor", "--model-path", "/no/such")
    assert refused.returncode == 2
    assert refused.stderr == "error: --model-path: there is no folder /no/such\n"


def test_every_module_is_imported_from_there(
    with_wheel: Environment, runs: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    run = runs["imports"]
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["is_namespace"]
    assert found["version"] in (ROOT / "pyproject.toml").read_text()
    here = with_wheel.packages / "dynamo" / "sglang_mm_resume"
    assert all(Path(file).is_relative_to(here) for file in found["modules"].values())
    expected = {path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"}
    assert len(found["modules"]) == len(expected) - 1, "all but the package itself"
    assert found["groups"] == {
        "sglang.srt.platforms": ["dynamo.sglang_mm_resume.sglang_cpu.platform"],
        "sglang.srt.plugins": ["dynamo.sglang_mm_resume.sglang_cpu.hooks"],
    }


@pytest.mark.full
@pytest.mark.integration
@pytest.mark.timeout(DEMO_TIMEOUT_S)
def test_the_demo_runs_on_the_wheel(with_wheel: Environment, keeper: Keeper) -> None:
    keeper.stop()  # two cores do not carry two deployments
    outcome = with_wheel.run(str(ROOT / "examples" / "demo.py"), timeout_s=TIMEOUT_S)
    print(outcome.stdout)
    assert outcome.returncode == 0, outcome.stderr
    assert_all_right(outcome.stdout)
    assert "All processes are stopped." in outcome.stdout


@pytest.mark.parametrize("name", ["processor", "encode", "frontend"])
def test_help(name: str, runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    run = runs[name]
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: python -m dynamo.sglang_mm_resume.")
    assert "--namespace" in run.stdout, "Dynamo's options are there too"


def test_the_package_is_a_program(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    run = runs["no role"]
    assert run.returncode == 2
    assert "--role" in run.stderr
