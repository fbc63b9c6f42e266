# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Archives of this project, and environments to install them into."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD_TIMEOUT_S = 120.0
#: Of our editable installation: the environment must have none of it.
OURS = "dynamo_sglang_mm_resume"


def build(tree: Path, folder: Path, target: str) -> Path:
    """The only archive that hatchling makes of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder]
    subprocess.run(command, check=True, capture_output=True, cwd=tree, timeout=BUILD_TIMEOUT_S)
    (built,) = folder.iterdir()
    return built


@dataclass(frozen=True)
class Environment:
    """A Python environment of its own, with the pinned packages and without this tree."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def install(self, archive: Path) -> None:
        """With what is there, and nothing from the net."""
        command = [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline"),
            *("--no-deps", "--no-build-isolation", "--python", self.python, archive),
        ]
        installed = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        assert installed.returncode == 0, installed.stderr

    def run(self, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Its Python, in a folder where nothing of this tree can be found."""
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder)},
            timeout=timeout_s,
            check=False,
        )


def make_environment(folder: Path) -> Environment:
    """Other distributions are links to where they are installed. `dynamo` is a folder of its own
    with links in it, as it is where several distributions share it.
    """
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder],
        check=True,
        timeout=BUILD_TIMEOUT_S,
    )
    environment = Environment(folder)
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if OURS in path.name:
            continue
        here = environment.packages / path.name
        if path.name != "dynamo":
            here.symlink_to(path)
            continue
        here.mkdir()
        for part in path.iterdir():
            (here / part.name).symlink_to(part)
    return environment
