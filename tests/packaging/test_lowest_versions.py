# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The lowest versions that pyproject.toml allows are enough.

A library may ignore what it does not know: pydantic 2.11 takes `Field(exclude_if=...)` without a
word, and sends what the release before refuses. Only running with that version can show it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.installation import ROOT

#: Gigabytes, or bound to a release of those: what they allow at least is what is pinned.
HEAVY = frozenset({"ai-dynamo", "nixl", "torch"})
TOOLS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout")
INSTALL_TIMEOUT_S = 300
TESTS_TIMEOUT_S = 600

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name not in HEAVY]


@pytest.mark.parametrize("requirement", LIGHT, ids=[r.name for r in LIGHT])
def test_a_direct_dependency_has_a_lowest_version(requirement: Requirement) -> None:
    """Else the environment below would have the oldest that was ever published."""
    assert any(bound.operator == ">=" for bound in requirement.specifier)
    assert requirement.specifier.contains(version(requirement.name))


def test_a_pydantic_that_ignores_an_option_of_our_fields_is_not_allowed() -> None:
    (pydantic,) = [r for r in LIGHT if r.name == "pydantic"]
    assert not pydantic.specifier.contains("2.11.10")


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the lowest versions, and today's tools for tests."""
    pytest.importorskip("uv", reason="uv, which installs, is not installed")
    folder = tmp_path_factory.mktemp("lowest")
    python = folder / "bin" / "python"
    tools = [f"{name}=={version(name)}" for name in TOOLS]
    install = ("pip", "install", "--quiet", "--resolution", "lowest-direct", "--python", python)
    _uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, folder)
    _uv(*install, "--only-binary", ":all:", *map(str, LIGHT), *tools)
    return python


@pytest.mark.nightly
@pytest.mark.timeout(INSTALL_TIMEOUT_S + TESTS_TIMEOUT_S)
def test_the_core_passes_its_tests_with_the_lowest_versions(lowest: Path) -> None:
    run = _python(lowest, *("-m", "pytest", "--quiet", "--noconftest"), "tests/core")
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@pytest.mark.nightly
@pytest.mark.timeout(INSTALL_TIMEOUT_S)
def test_the_front_door_is_imported_with_the_lowest_versions(lowest: Path) -> None:
    run = _python(lowest, "-c", "import dynamo.sglang_mm_resume.workers.relay")
    assert run.returncode == 0, run.stderr


def _uv(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "uv", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr


def _python(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """On this tree, and without what this environment has installed."""
    path = os.pathsep.join(map(str, (ROOT / "components" / "src", ROOT)))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "CI": "1"}
    return subprocess.run(
        [python, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=TESTS_TIMEOUT_S,
        check=False,
    )
