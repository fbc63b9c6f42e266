# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How long an embedding takes from a tensor on the encode side to one on the prefill side.

    python -m benchmarks.handoff [--quick] [--tokens 64,1024] [--hidden 3584] [--repeats 15]

Ours, the three modes that Dynamo has itself, and the floor each have two processes of their own.
Contenders take turns, round by round, so that noise hits all alike; those whose turn it is not
are stopped, because some use a whole core for nothing. Every length is checked byte by byte once
before it is measured. What each contender does is said in its module.
"""

import argparse
import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.pair import Failed, Pair, Workload
from benchmarks.report import Results

RESULTS = Path(__file__).resolve().parent / "results"
TOKENS = (64, 1024, 4096, 16384)
QUICK_TOKENS = (64, 1024)

console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    options = _parse(arguments)
    # Libraries of some contenders greet on stderr; errors still show.
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    results = Results(Workload(options.tokens, options.hidden), options.repeats)
    asyncio.run(measure(results, options.contenders))
    results.show(console)
    results.write(options.out)
    console.print(f"written to {os.path.relpath(options.out)}")


async def measure(results: Results, contenders: Sequence[Contender]) -> None:
    """Fill `results`. No process outlives this."""
    pairs = [Pair(contender, results.workload) for contender in contenders]
    try:
        for pair in pairs:
            pair.spawn()
        for pair, contender in zip(pairs, contenders, strict=True):
            console.print(f"starting {contender.name}")
            await _prepare(pair, contender, results)
        with _progress(results.repeats) as rounds:
            for number in rounds:
                for pair in _rotated(pairs, number):
                    await _turn(pair, results)
        for pair in pairs:
            results.peak_rss[pair.name] = pair.peak_rss
    finally:
        for pair in pairs:
            pair.stop()


async def _prepare(pair: Pair, contender: Contender, results: Results) -> None:
    """Start a contender and check each length once; what fails is not measured."""
    try:
        _require_memory(contender.needs_gib)
        await pair.start()
    except Failed as error:
        for tokens in results.workload.tokens:
            _fail(results, pair.name, tokens, error)
        return
    for tokens in results.workload.tokens:
        try:
            await pair.hand_off(tokens, verify=True)
        except Failed as error:
            _fail(results, pair.name, tokens, error)
    pair.pause()


async def _turn(pair: Pair, results: Results) -> None:
    """One measured hand-off per length, after one that wakes the processes up."""
    lengths = [t for t in results.workload.tokens if not results.failed(pair.name, t)]
    if not lengths:
        return
    pair.resume()
    for number, tokens in enumerate([lengths[0], *lengths]):
        try:
            took = await pair.hand_off(tokens)
        except Failed as error:
            _fail(results, pair.name, tokens, error)
            continue
        for name, seconds in took.items() if number else ():
            results.add(name, tokens, seconds)
    pair.pause()


def _fail(results: Results, name: str, tokens: int, error: Failed) -> None:
    results.fail(name, tokens, str(error))
    console.print(f"{name} fails at {tokens} tokens: {error}")


def _require_memory(needs_gib: float) -> None:
    available = psutil.virtual_memory().available / 2**30
    if available < needs_gib:
        raise Failed(f"needs {needs_gib:g} GiB of memory, {available:.1f} GiB are available")


def _rotated(pairs: Sequence[Pair], number: int) -> list[Pair]:
    """Nobody is always the one that follows the same other."""
    first = number % len(pairs)
    return [*pairs[first:], *pairs[:first]]


@contextmanager
def _progress(rounds: int) -> Iterator[Iterator[int]]:
    """Numbers of rounds, shown as a bar; as a few lines where there is no terminal."""
    columns = (
        TextColumn("measuring, round"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=rounds)

        def numbers() -> Iterator[int]:
            for number in range(rounds):
                if not console.is_terminal and number % 5 == 0:
                    console.print(f"measuring, round {number + 1} of {rounds}")
                yield number
                bar.advance(task)

        yield numbers()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handoff",
        description="Measure the hand-off of embeddings against Dynamo's own.",
    )
    parser.add_argument("--tokens", type=_lengths, help="lengths, such as 64,1024")
    parser.add_argument("--hidden", type=_positive, default=3584, help="elements a token (3584)")
    parser.add_argument("--repeats", type=_positive, help="measured rounds (15)")
    parser.add_argument("--quick", action="store_true", help="two lengths, five rounds")
    parser.add_argument(
        "--only",
        dest="contenders",
        type=_contenders,
        default=CONTENDERS,
        help="some contenders: " + ",".join(c.name for c in CONTENDERS),
    )
    default = RESULTS / f"{date.today().isoformat()}.json"
    parser.add_argument(
        "--out", type=Path, default=default, help="file to write (benchmarks/results/<date>.json)"
    )
    options = parser.parse_args(arguments)
    options.tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS)
    options.repeats = options.repeats or (5 if options.quick else 15)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _contenders(text: str) -> tuple[Contender, ...]:
    known = {contender.name: contender for contender in CONTENDERS}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return tuple(known[name] for name in text.split(","))


if __name__ == "__main__":
    main()
