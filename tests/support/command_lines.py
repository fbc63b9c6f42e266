# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of a container, read by the parsers of the program that it starts.

Nothing is started and no model is loaded. A flag, a value or a variable that the program would
refuse, or not look at, is a `Mistake`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from dynamo.common.configuration.arg_group import ArgGroup
from dynamo.common.configuration.groups.runtime_args import (
    DynamoRuntimeArgGroup,
    DynamoRuntimeConfig,
)
from dynamo.frontend.frontend_args import FrontendArgGroup
from dynamo.sglang.backend_args import DynamoSGLangArgGroup
from sglang.srt.server_args import ServerArgs

from dynamo.sglang_mm_resume.args import DEFAULT_TOKENS, BadArgument, parse_settings
from dynamo.sglang_mm_resume.config import Settings, spec_of
from dynamo.sglang_mm_resume.workers import start_frontend, start_processor
from dynamo.sglang_mm_resume.workers.role import MODE_ENV
from tests.support.planner import PlannerConfig

OURS = "dynamo.sglang_mm_resume"
FRONTEND = f"{OURS}.frontend"
PROCESSOR = f"{OURS}.processor"
ENCODE = f"{OURS}.encode_worker"
PREFILL = f"{OURS}.prefill_worker"
DECODE = f"{OURS}.decode_worker"
PLANNER = "dynamo.planner"

#: Read by libraries: the Hugging Face hub's, UCX.
_OF_LIBRARIES = re.compile(r"HF_(HOME|TOKEN)|UCX_[A-Z_]+")
_KEPT = ("PATH", "HOME", "LD_LIBRARY_PATH")


class Mistake(Exception):
    """Something that the program would refuse, or not look at."""


@dataclass(frozen=True)
class CommandLine:
    """What a program makes of its command line and its environment."""

    module: str
    settings: Settings
    """Ours; the defaults for a program that has none."""
    options: Mapping[str, Any]
    """Those of Dynamo, of SGLang and of the processor, by their names in the parsers."""
    namespace: str
    """Dynamo's."""


def read(command: Sequence[str], environ: Mapping[str, str]) -> CommandLine:
    """`python3 -m MODULE FLAG…` with these variables. Raises Mistake."""
    if list(command[:2]) != ["python3", "-m"] or len(command) < 3:
        raise Mistake(f"{command[:3]} is not python3 -m MODULE")
    module, argv = command[2], list(command[3:])
    if module not in _READERS:
        raise Mistake(f"{module} is no program of the graph")
    for name in environ:
        if not (_OF_LIBRARIES.fullmatch(name) or name in _our_variables() or _of_dynamo(name)):
            raise Mistake(f"nobody reads {name}")
    with _environment(environ):
        try:
            return _READERS[module](module, argv)
        except (BadArgument, SystemExit) as refused:
            raise Mistake(f"{module} {argv}: refused") from refused


def _frontend(module: str, argv: list[str]) -> CommandLine:
    _, rest = start_frontend.parse_options(argv)
    start_frontend.relay_address(rest)
    options = _parsed(rest, FrontendArgGroup())
    return CommandLine(module, Settings(), options, str(options["namespace"]))


def _processor(module: str, argv: list[str]) -> CommandLine:
    settings, rest = parse_settings(argv)
    parsed = start_processor.build_parser().parse_args(rest)
    config = start_processor.ProcessorConfig.from_cli_args(parsed)
    config.validate()
    return CommandLine(module, settings, vars(parsed), config.namespace)


def _worker(module: str, argv: list[str]) -> CommandLine:
    settings, rest = parse_settings(argv)
    options = _parsed(rest, DynamoRuntimeArgGroup(), DynamoSGLangArgGroup(), sglang=True)
    config = DynamoRuntimeConfig.from_cli_args(argparse.Namespace(**options))
    config.validate()
    return CommandLine(module, settings, options, config.namespace)


def _planner(module: str, argv: list[str]) -> CommandLine:
    parser = _Strict(allow_abbrev=False)
    parser.add_argument("--config", required=True)
    text = parser.parse_args(argv).config
    options = PlannerConfig.from_config_arg(text)
    unknown = set(json.loads(text)) - set(PlannerConfig.model_fields)  # ignored by the planner
    if unknown:
        raise Mistake(f"the planner has no setting {', '.join(sorted(unknown))}")
    return CommandLine(module, Settings(), options.model_dump(), options.namespace)


_READERS: Mapping[str, Callable[[str, list[str]], CommandLine]] = {
    FRONTEND: _frontend,
    PROCESSOR: _processor,
    ENCODE: _worker,
    PREFILL: _worker,
    DECODE: _worker,
    PLANNER: _planner,
}


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Mistake(message)


def _parsed(argv: list[str], *groups: ArgGroup, sglang: bool = False) -> dict[str, Any]:
    parser = _Strict(allow_abbrev=False, add_help=False)
    for group in groups:
        group.add_arguments(parser)
    options, rest = parser.parse_known_args(argv)
    engine = _Strict(allow_abbrev=False, add_help=False)
    if sglang:
        ServerArgs.add_cli_args(engine)
    return {**vars(engine.parse_args(rest)), **vars(options)}


@contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with mock.patch.dict(os.environ, {**kept, **environ}, clear=True):
        yield


@cache
def _our_variables() -> frozenset[str]:
    settings = {spec_of(name).env for name in Settings.model_fields}
    return frozenset(
        {*settings, DEFAULT_TOKENS.env, MODE_ENV, *(spec.env for spec in start_frontend.OPTIONS)}
    )


@cache
def _of_dynamo(name: str) -> bool:
    """Whether Dynamo's packages have the name anywhere, its library in Rust included."""
    return any(_holds(path, name.encode()) for path in _dynamo_files())


@cache
def _dynamo_files() -> tuple[Path, ...]:
    found = [
        Path(str(file.locate()))
        for package in ("ai-dynamo-runtime", "ai-dynamo")
        for file in files(package) or ()
        if file.suffix in (".so", ".py") and "tests" not in file.parts
    ]
    return tuple(path for path in found if path.is_file() and path.stat().st_size)


def _holds(path: Path, name: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name) >= 0
