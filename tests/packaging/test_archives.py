# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel and the source distribution: what is in them, and what must not be."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.installation import ROOT, build

SOURCES = ROOT / "components" / "src"
OURS = "dynamo/sglang_mm_resume/"


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


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


def test_the_sources_make_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    again = build(tree, tmp_path / "again", "wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


def test_the_sources_have_no_more_than_it_takes(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers()]
    allowed = ("components/", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore")
    assert [name for name in names if not name.startswith(allowed)] == []
