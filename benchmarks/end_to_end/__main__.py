# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Time to first token and requests a second over HTTP, of our graph and of Dynamo's own.

    python -m benchmarks.end_to_end [--quick] [--rotations 2] [--only ours,local]

Graphs run one at a time, as each fills a small machine. They take turns, so that noise that comes
and goes hits all alike. In a turn a graph is measured with two encode workers, then with one. Every
graph is shown the same pictures, none of them twice but where that is what is measured.
"""

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console

from benchmarks.end_to_end import report
from benchmarks.end_to_end.client import Client, Failed
from benchmarks.end_to_end.graphs import GRAPHS, Graph
from benchmarks.end_to_end.measures import MEASURES, Repeats, Turn, warm_up
from benchmarks.end_to_end.processor_time import processor_seconds
from benchmarks.end_to_end.questions import Questions
from benchmarks.end_to_end.results import Results, Setup
from examples.local_stack import LocalStack, OnProgress, ProcessStatus, StackError

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
THOROUGH: Final = Repeats(requests=20, bursts=3, several=8)
QUICK: Final = Repeats(requests=5, bursts=1, several=3)
READY_DEADLINE_S: Final = 240.0
MEASURE_DEADLINE_S: Final = 180.0

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the files."""
    options = _parse(arguments)
    repeats = QUICK if options.quick else THOROUGH
    results = Results()
    for rotation in range(options.rotations):
        for graph in _rotated(options.graphs, rotation):
            console.print(f"rotation {rotation + 1} of {options.rotations}: {graph.name}")
            take_turn(graph, rotation, repeats, results)
            results.rotations = rotation + 1
            # What there is by now is kept, whatever comes.
            report.write(results, options.out)
    report.show(results, console)
    console.print(f"written to {os.path.relpath(options.out)}, and beside it .md and .png")


def take_turn(graph: Graph, rotation: int, repeats: Repeats, results: Results) -> None:
    """Start a graph, measure it with every number of workers, stop it."""
    try:
        with LocalStack(graph.config) as stack:
            with _shown("  starting") as show:
                stack.wait_ready(READY_DEADLINE_S, show)
            results.commands[graph.name] = _commands(stack)
            for phase, encode_workers in enumerate(graph.phases):
                for worker in range(encode_workers, graph.config.num_encode):
                    stack.terminate(f"encode-{worker}")
                setup = Setup(graph.name, encode_workers)
                asyncio.run(_measure(stack, setup, f"{rotation}/{phase}", repeats, results))
                stack.check()
    except (StackError, Failed) as error:
        results.broken[graph.name].append(str(error))
        # The second line names a log that is kept.
        console.print("  fails:", *str(error).splitlines()[:2], markup=False)


async def _measure(
    stack: LocalStack, setup: Setup, turn_name: str, repeats: Repeats, results: Results
) -> None:
    """Raises `Failed` where the graph does not get warm."""
    async with Client(stack.base_url) as client:
        turn = Turn(setup, client, Questions(turn_name), results, repeats)
        with _shown(f"  {setup}: warming up"):
            await warm_up(turn)
        for measure in MEASURES:
            name = measure.__name__.replace("_", " ")
            before, asked = processor_seconds(stack), client.asked
            with _shown(f"  {setup}: {name}"):
                try:
                    async with asyncio.timeout(MEASURE_DEADLINE_S):
                        await measure(turn)
                except TimeoutError:
                    why = f"{setup}: {name}: not done in {MEASURE_DEADLINE_S:g} s"
                    results.broken[setup.graph].append(why)
            stack.check()
            after = processor_seconds(stack)
            spent = {role: seconds - before[role] for role, seconds in after.items()}
            results.spend(setup, name, client.asked - asked, spent)


def _rotated(graphs: Sequence[Graph], rotation: int) -> list[Graph]:
    """Every other time in the opposite order: nobody is always the first, or after the same."""
    return list(graphs) if rotation % 2 == 0 else list(reversed(graphs))


def _commands(stack: LocalStack) -> list[str]:
    """Of every process, from `-m` on, with paths from the root of the repository."""
    lines = [" ".join(psutil.Process(process.pid).cmdline()) for process in stack.processes]
    return [line[line.index("-m ") :].replace(f"{ROOT}/", "") for line in lines]


@contextmanager
def _shown(text: str) -> Iterator[OnProgress]:
    """One line for what is going on; on a terminal, with what there is to wait for."""
    console.print(text)
    if not console.is_terminal:
        yield lambda _processes: None
        return
    with console.status("") as status:

        def show(processes: Sequence[ProcessStatus]) -> None:
            waiting = [f"{p.name} {p.seconds:.0f} s" for p in processes if p.state == "starting"]
            status.update(", ".join(waiting))

        yield show


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description="Measure whole graphs over HTTP, ours and Dynamo's own.",
    )
    parser.add_argument("--rotations", type=_positive, default=2, help="turns of each graph (2)")
    parser.add_argument("--quick", action="store_true", help="few requests in each turn")
    parser.add_argument(
        "--only",
        dest="graphs",
        type=_graphs,
        default=GRAPHS,
        help="some graphs: " + ",".join(graph.name for graph in GRAPHS),
    )
    default = RESULTS / f"{date.today().isoformat()}-http.json"
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        help="file to write (benchmarks/results/<date>-http.json); a table and a plot go beside it",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _graphs(text: str) -> tuple[Graph, ...]:
    known = {graph.name: graph for graph in GRAPHS}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return tuple(known[name] for name in text.split(","))


if __name__ == "__main__":
    main()
