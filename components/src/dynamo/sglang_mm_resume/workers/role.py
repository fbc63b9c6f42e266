# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One entry point for all workers, with the environment name of the original documents."""

import os
import runpy
import sys
from collections.abc import Mapping
from typing import Final

from dynamo.sglang_mm_resume.args import BadArgument, exit_on_bad_argument

MODE_ENV: Final = "SGLANG_DISAGGREGATION_MODE"

#: What the original documents call a role, and the module that plays it here.
ROLES: Final[Mapping[str, str]] = {
    "encode": "encode_worker",
    "language": "prefill_worker",
    "prefill": "prefill_worker",
    "decode": "decode_worker",
    "processor": "processor",
    "frontend": "frontend",
}
_MODES: Final = ("encode", "language")


def choose(argv: list[str], environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """The module to run and its arguments. Raises `BadArgument` naming what is wrong."""
    argv = [part for arg in argv for part in _split(arg)]
    if "--role" in argv:
        at = argv.index("--role")
        role, rest = (argv[at + 1] if at + 1 < len(argv) else ""), argv[:at] + argv[at + 2 :]
        return _module("--role", role, tuple(ROLES)), rest
    mode = environ.get(MODE_ENV)
    if mode is None:
        raise BadArgument(
            f"--role ({', '.join(ROLES)}) or {MODE_ENV} ({', '.join(_MODES)}) must say "
            "which worker to start"
        )
    return _module(MODE_ENV, mode, _MODES), argv


def run_role() -> None:
    """Become the chosen worker."""
    with exit_on_bad_argument():
        module, rest = choose(sys.argv[1:], os.environ)
    sys.argv[1:] = rest
    runpy.run_module(f"dynamo.sglang_mm_resume.{module}", run_name="__main__", alter_sys=True)


def _split(arg: str) -> list[str]:
    return arg.split("=", 1) if arg.startswith("--role=") else [arg]


def _module(setting: str, role: str, allowed: tuple[str, ...]) -> str:
    if role not in allowed:
        raise BadArgument(f"{setting}: {role!r} is none of {', '.join(allowed)}")
    return ROLES[role]
