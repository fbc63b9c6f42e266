# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is installed next to other distributions in the namespace `dynamo`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "components" / "src"
OURS = "dynamo/sglang_mm_resume/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=60)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_the_package_and_its_metadata(wheel: Path, names: set[str]) -> None:
    name, version = wheel.stem.split("-")[:2]
    allowed = (OURS, f"{name}-{version}.dist-info/")
    assert [name for name in names if not name.startswith(allowed)] == []


def test_the_namespace_stays_one(names: set[str]) -> None:
    assert "dynamo/__init__.py" not in names


def test_every_module_is_there(names: set[str]) -> None:
    modules = {str(path.relative_to(SOURCES)) for path in (SOURCES / OURS).rglob("*.py")}
    assert modules <= names


def test_types_are_announced(names: set[str]) -> None:
    assert f"{OURS}py.typed" in names


def test_entry_points_lead_to_modules(wheel: Path, names: set[str]) -> None:
    (path,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
    lines = zipfile.ZipFile(wheel).read(path).decode().splitlines()
    targets = [line.partition(" = ")[2].partition(":")[0] for line in lines if " = " in line]
    assert targets
    assert {f"{target.replace('.', '/')}.py" for target in targets} <= names
