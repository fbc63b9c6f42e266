# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of all workers: our settings, `--help`, one clear line on a bad value."""

import argparse
import logging
import sys
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import uvloop
from dynamo.runtime.logging import configure_dynamo_logging

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.args import (
    BadArgument,
    exit_on_bad_argument,
    log_bootstrap_addr_notice,
    parse_settings,
    print_help,
)
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.workers.lifecycle import WorkerLost
from dynamo.sglang_mm_resume.workers.limits import raise_message_limit

Worker = Callable[[Settings, list[str]], Awaitable[None]]

logger = logging.getLogger(__name__)


def run(prog: str, worker: Worker, upstream_help: Callable[[], object]) -> None:
    """Parse `sys.argv`, then run `worker` until it ends.

    Exits with 2 on a bad argument, and with 1 where the worker cannot go on.
    """
    argv = sys.argv[1:]
    if "-h" in argv or "--help" in argv:
        print_help(f"python -m dynamo.sglang_mm_resume.{prog}", upstream_help)
        return
    with exit_on_bad_argument():
        settings, rest = parse_settings(argv)
        _require_local_model(rest)
        raise_message_limit()
        _run_worker(worker, settings, rest)


def _run_worker(worker: Worker, settings: Settings, rest: list[str]) -> None:
    """Until it ends; exits with 1 where it cannot go on."""
    # Dynamo's and SGLang's parsers print hundreds of lines of usage in front of what is wrong.
    argparse.ArgumentParser.error = _one_line  # type: ignore[assignment]
    configure_dynamo_logging()
    tracing.start()
    log_bootstrap_addr_notice()
    try:
        uvloop.run(worker(settings, rest))  # type: ignore[arg-type]
    except WorkerLost as error:
        logger.error("%s", error)
        sys.exit(1)


def sglang_help() -> None:
    """Every flag that is passed through to Dynamo's runtime and to the SGLang engine."""
    from dynamo.sglang.args import parse_args

    async def show() -> None:
        await parse_args(["--help"])

    uvloop.run(show())


def _require_local_model(argv: list[str]) -> None:
    """A mistyped folder would otherwise be looked up as a Hugging Face id, at length."""
    for flag, value in pairwise([part for arg in argv for part in arg.split("=", 1)]):
        is_folder = value.startswith(("/", "./", "../", "~"))
        if flag in ("--model-path", "--model") and is_folder and not Path(value).is_dir():
            raise BadArgument(f"--model-path: there is no folder {value}")


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.exit(2, f"error: {message} (see --help)\n")
