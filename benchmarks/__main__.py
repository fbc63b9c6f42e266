# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How long an embedding takes from a tensor on the encode side to one on the prefill side.

    python -m benchmarks [--quick] [--suite lengths,pools] [--only ours,nixl-read]

Every contender has processes of its own. Contenders take turns, round by round, so that noise hits
all alike; those whose turn it is not are stopped, because some use a whole core for nothing. What
is measured was compared byte by byte once before. What each contender does is said in its module,
and what each suite measures in its own.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import report
from benchmarks.bench import Bench
from benchmarks.channel import Failed
from benchmarks.contenders import ALL, OURS
from benchmarks.plots import plot
from benchmarks.suites import (
    Suite,
    adaptive,
    allocator,
    concurrency,
    lengths,
    memory,
    pools,
    rounds,
    stages,
)

RESULTS: Final = Path(__file__).resolve().parent / "results"
SUITES: Final = {
    module.SUITE.name: module.SUITE
    for module in (
        lengths,
        pools,
        rounds,
        adaptive,
        concurrency,
        memory,
        allocator,
        stages,
    )
}

console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the files."""
    options = parse(arguments)
    # Processes are killed at the end of their suite, with whatever they hold.
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    started = report.Run(
        datetime.now(UTC),
        os.getloadavg(),
        {"suites": [suite.name for suite in options.suites], "quick": options.quick},
    )
    bench = Bench(console, options.only, options.quick, options.device)
    asyncio.run(_measure(bench, options.suites))
    report.show(console, bench.results, options.suites)
    report.write(options.out, started, bench.results, options.suites)
    written = [options.out, options.out.with_suffix(".md"), *plot(bench.results, options.out)]
    console.print(f"written: {', '.join(os.path.relpath(path) for path in written)}")


async def _measure(bench: Bench, suites: Sequence[Suite]) -> None:
    for number, suite in enumerate(suites, 1):
        console.rule(f"{number} of {len(suites)}: {suite.name}")
        began = time.monotonic()
        try:
            await suite.run(bench)
        except Failed as error:  # of the only contender: what was measured before is kept
            bench.complain(f"{suite.name} ends early: {error}")
            bench.results.fail(suite.name, "all", "", (), OURS.name, str(error))
        console.print(f"{suite.name}: done after {time.monotonic() - began:.0f} s")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Ends the process if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the hand-off of embeddings against others that do the same.",
    )
    parser.add_argument(
        "--suite",
        dest="suites",
        type=_suites,
        default=tuple(SUITES.values()),
        help="what to measure: " + ",".join(SUITES),
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument(
        "--only", type=_contenders, default=(), help="some contenders: " + ",".join(_names())
    )
    parser.add_argument("--device", default="cpu", help="of embeddings and pools: cpu or cuda")
    default = RESULTS / f"{date.today().isoformat()}.json"
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        help="file to write; tables and plots go beside it (benchmarks/results/<date>.json)",
    )
    return parser.parse_args(arguments)


def _names() -> list[str]:
    return [contender.name for contender in ALL]


def _suites(text: str) -> tuple[Suite, ...]:
    _require_known(text, SUITES)
    return tuple(SUITES[name] for name in text.split(","))


def _contenders(text: str) -> tuple[str, ...]:
    _require_known(text, _names())
    return tuple(text.split(","))


def _require_known(text: str, known: "Sequence[str] | dict[str, Suite]") -> None:
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")


if __name__ == "__main__":
    main()
