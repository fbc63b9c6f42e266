# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The command line of `top`."""

import argparse
import asyncio
import importlib.util
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

from dynamo.common.configuration.groups.runtime_args import (
    DynamoRuntimeArgGroup,
    DynamoRuntimeConfig,
)

from dynamo.sglang_mm_resume.args import exit_on_bad_argument
from dynamo.sglang_mm_resume.doctor import graph as graphs
from dynamo.sglang_mm_resume.doctor.processor_url import base_url
from dynamo.sglang_mm_resume.doctor.report import Outcome
from dynamo.sglang_mm_resume.top.collect import Discovered, Source, SystemPorts
from dynamo.sglang_mm_resume.top.model import History, View
from dynamo.sglang_mm_resume.workers.lifecycle import argument_errors, runtime_of

if TYPE_CHECKING:
    from rich.console import RenderableType

PROG: Final = "python -m dynamo.sglang_mm_resume.top"
EPILOG: Final = (
    "Without --url, workers are found as they find each other: by DYN_DISCOVERY_BACKEND, "
    "ETCD_ENDPOINTS, DYN_FILE_KV, DYN_NAMESPACE and the other variables and flags of Dynamo's "
    "runtime. Exit code of --once: 0 all workers answered, 1 some did not or there are none, 2 a "
    "bad argument or no discovery."
)
INTERVAL_S: Final = 2.0
LIMIT_S: Final = 2.0
MAX_TRANSFERS: Final = 8
#: Seconds for discovery to name the first worker.
DISCOVERY_S: Final = 5.0
#: Seconds for Dynamo's runtime to connect.
CONNECT_S: Final = 20.0
#: Columns of a frame that goes to a file or a pipe.
_PIPE_WIDTH: Final = 110

INCOMPLETE: Final = 1
NOT_FOUND: Final = 2

Show = Callable[[View], None]


class NoDiscovery(Exception):
    """Workers cannot be looked for; the text says what to do."""


def main(argv: Sequence[str]) -> int:
    """Look, draw, and look again; returns the exit code."""
    options, rest = _parser().parse_known_args(argv)
    urls = [url for group in options.url for url in group]
    with exit_on_bad_argument():
        config = _runtime_config(rest, urls)
    _require_a_way_to_draw(options)
    try:
        return asyncio.run(_run(options, urls, config))
    except NoDiscovery as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_FOUND
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


# --- Arguments ---


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Shows pools, transfers, waits and failures of all workers of a graph.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--url",
        type=_urls,
        action="append",
        default=[],
        metavar="URL[,URL...]",
        help="System port of a worker (its DYN_SYSTEM_PORT), as host:port or http://host:port; may "
        "be repeated. Default: all workers that discovery lists in --namespace (DYN_NAMESPACE).",
    )
    parser.add_argument(
        "--interval",
        type=_between(0.2, 3600),
        default=INTERVAL_S,
        metavar="SECONDS",
        help=f"Time between two looks, 0.2 to 3600 (default: {INTERVAL_S:g}).",
    )
    parser.add_argument(
        "--timeout",
        type=_between(0.1, 60),
        default=LIMIT_S,
        metavar="SECONDS",
        help=f"Time that a worker has for its answer, 0.1 to 60 (default: {LIMIT_S:g}).",
    )
    parser.add_argument(
        "--transfers",
        type=_between(0, 1000),
        default=MAX_TRANSFERS,
        metavar="NUMBER",
        help=f"Transfers that are listed per worker, the oldest first (default: {MAX_TRANSFERS}).",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="Look twice, so that there are rates, print one frame, and end.",
    )
    parser.add_argument(
        "--json", action="store_true", help="Print a JSON object per look instead of a frame."
    )
    return parser


def _urls(text: str) -> list[str]:
    try:
        return [base_url(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _between(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not minimum <= number <= maximum:  # nor is NaN
            raise argparse.ArgumentTypeError(f"{text} is not between {minimum:g} and {maximum:g}")
        return number

    return parse


def _runtime_config(rest: Sequence[str], urls: Sequence[str]) -> DynamoRuntimeConfig | None:
    """What Dynamo's own flags and variables say; None where URLs leave nothing to be found."""
    if urls:
        if rest:
            _parser().error(f"with --url, {rest[0]} has no meaning")
        return None
    parser = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    DynamoRuntimeArgGroup().add_arguments(parser)
    parser.usage = "%(prog)s [options] (see --help)"  # not the hundred flags of the group
    config = DynamoRuntimeConfig.from_cli_args(parser.parse_args(rest))
    with argument_errors():
        config.validate()
    return config


def _require_a_way_to_draw(options: argparse.Namespace) -> None:
    if options.json:
        return
    if importlib.util.find_spec("rich") is None:
        _parser().error(
            "frames are drawn with rich, which is not installed: "
            "pip install 'dynamo-sglang-mm-resume[top]', or use --json"
        )
    if not options.once and not sys.stdout.isatty():
        _parser().error("standard output is no terminal: use --once or --json")


# --- Looking ---


async def _run(
    options: argparse.Namespace, urls: Sequence[str], config: DynamoRuntimeConfig | None
) -> int:
    history = History()
    async with _source(options, urls, config) as source:
        view = await _look(source, history)
        with _output(options) as show:
            while not options.once:
                show(view)
                await asyncio.sleep(options.interval)
                view = await _look(source, history)
            await asyncio.sleep(options.interval)
            view = await _look(source, history)
            show(view)
            return 0 if view.complete else INCOMPLETE


def _source(
    options: argparse.Namespace, urls: Sequence[str], config: DynamoRuntimeConfig | None
) -> AbstractAsyncContextManager[Source]:
    return (
        _system_ports(urls, options.timeout)
        if config is None
        else _discovered(config, options.timeout)
    )


async def _look(source: Source, history: History) -> View:
    answers = await source.look()
    now = time.monotonic()
    history.add(answers, now)
    return history.view(now)


@asynccontextmanager
async def _system_ports(urls: Sequence[str], limit_s: float) -> AsyncIterator[Source]:
    source = SystemPorts(urls, limit_s)
    try:
        yield source
    finally:
        await source.close()


@asynccontextmanager
async def _discovered(config: DynamoRuntimeConfig, limit_s: float) -> AsyncIterator[Source]:
    reachable = await graphs.discovery(config.discovery_backend)
    if reachable.outcome is Outcome.FAIL:
        raise NoDiscovery(f"{reachable.text}: {reachable.action}")
    # In the pod of a worker, this port is that worker's.
    os.environ.pop("DYN_SYSTEM_PORT", None)
    _silence_dynamo()
    runtime, _ = runtime_of(config)
    try:
        try:
            async with asyncio.timeout(CONNECT_S):
                source = await Discovered.connect(runtime, config.namespace, limit_s)
        except TimeoutError:
            raise NoDiscovery(f"discovery did not answer within {CONNECT_S:g} s") from None
        await source.settled(DISCOVERY_S)
        yield source
    finally:
        runtime.shutdown()


def _silence_dynamo() -> None:
    """Its runtime logs every call to file descriptor 2, whatever DYN_LOG says, until this process
    ends: that would spoil the picture. What we have to say still gets there.
    """
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


# --- Showing ---


@contextmanager
def _output(options: argparse.Namespace) -> Iterator[Show]:
    """A function that shows a view; what it takes of the terminal is given back afterwards."""
    if options.json:
        yield _print_json
        return
    # Here, as rich need not be there for --json.
    from rich.console import Console
    from rich.live import Live

    from dynamo.sglang_mm_resume.top.render import draw

    def frame(view: View) -> "RenderableType":
        return draw(view, f"{datetime.now():%H:%M:%S}", int(options.transfers))

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if options.once:
        yield lambda view: console.print(frame(view))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda view: live.update(frame(view), refresh=True)


def _print_json(view: View) -> None:
    time_of_day = datetime.now().astimezone().isoformat(timespec="milliseconds")
    print(json.dumps({"time": time_of_day, **view.model_dump()}), flush=True)
