# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What `make wheel` builds, and where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.installation import ROOT, Environment, build, make_environment


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this tree."""
    pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="session")
def with_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel is installed here."""
    return _with(wheel, tmp_path_factory.mktemp("with-wheel"))


@pytest.fixture(scope="session")
def with_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The source distribution is installed here, which builds it."""
    return _with(sdist, tmp_path_factory.mktemp("with-sdist"))


def _with(archive: Path, folder: Path) -> Environment:
    pytest.importorskip("uv", reason="uv, which installs, is not installed")
    environment = make_environment(folder / "environment")
    environment.install(archive)
    return environment
