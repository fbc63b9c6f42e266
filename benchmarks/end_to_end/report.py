# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The file, the tables and the plot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.end_to_end.graphs import AGGREGATED, THREADS
from benchmarks.end_to_end.measures import AT_ONCE, BURST
from benchmarks.end_to_end.plot import plot
from benchmarks.end_to_end.results import Results, Series
from benchmarks.end_to_end.targets import targets
from benchmarks.report import Table, machine

_TARGETS: Final = ("target", "measured", "should be", "verdict")
_TIMES: Final = ("contender", "n", "failed", "median ms", "p95 ms", "requests/s")
_ROLES: Final = ("frontend", "processor", "encode", "prefill")
_COSTS: Final = ("requests", "contender", *_ROLES, "all, ms")
_ANSWERS: Final = ("contender", "answers", "right", f"same as {AGGREGATED}")

Row = tuple[str, ...]


def write(results: Results, path: Path) -> None:
    """`path`, and beside it the tables (.md) and the plot (.png)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results.as_dict() | _verdicts(results), ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text("\n".join(_document(results)) + "\n")
    plot(results, path.with_suffix(".png"))


def show(results: Results, console: Console) -> None:
    """The same tables on a terminal."""
    for table in _tables(results):
        console.print(table.on_terminal())
    for line in _complaints(results):
        console.print(line, markup=False)


def _verdicts(results: Results) -> dict[str, object]:
    return {"targets": [target.as_dict() for target in targets(results)]}


def _document(results: Results) -> Iterator[str]:
    about = machine()
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    yield "# Over HTTP"
    yield ""
    yield (
        f"{results.started:%Y-%m-%d}, {about['processor']}, {about['cores']} cores, "
        f"{about['memory_gib']} GiB, kernel {about['kernel']}, Python {about['python']}, "
        f"{packages}. Graphs ran one at a time, {results.rotations} turns each; in a turn all saw "
        "the same pictures, which no cache had seen. Every process computes with "
        f"OMP_NUM_THREADS={THREADS}. Written by `make bench-http`."
    )
    for table in _tables(results):
        yield ""
        yield from table.markdown()
    complaints = list(_complaints(results))
    if complaints:
        yield from ("", "## What failed", "")
        yield from (f"- {line}" for line in complaints)
    yield from ("", "## How the graphs were started")
    for graph, commands in results.commands.items():
        yield from ("", f"{graph}:", "", "```", *commands, "```")


def _tables(results: Results) -> Iterator[Table]:
    rows: list[Row] = [
        (t.what, "-" if t.value is None else f"{t.value:.2f} {t.unit}", t.target, t.verdict)
        for t in targets(results)
    ]
    yield Table("Targets", "", _TARGETS, rows)
    for measure in results.measures:
        yield Table(measure.capitalize(), "", _TIMES, list(_times(results, measure)))
    yield Table(
        "Processor time of a request",
        "User and system time of all processes, in milliseconds, by role.",
        _COSTS,
        list(_costs(results)),
    )
    yield Table("Answers", "", _ANSWERS, list(_answers(results)))


def _times(results: Results, measure: str) -> Iterator[Row]:
    for setup in results.setups:
        series = results.series.get((setup, measure))
        if series is not None:
            yield (str(setup), *_cells(series, measure))


def _cells(series: Series, measure: str) -> Row:
    count, failed = str(len(series.seconds)), str(len(series.failures))
    median, p95 = series.median, series.percentile(0.95)
    if median is None or p95 is None:
        return (count, failed, "fails", "", "")
    rate = f"{BURST / median:.1f}" if measure == AT_ONCE else ""
    return (count, failed, f"{1e3 * median:.1f}", f"{1e3 * p95:.1f}", rate)


def _costs(results: Results) -> Iterator[Row]:
    for (setup, measure), cost in sorted(results.costs.items(), key=lambda item: item[0][1]):
        if cost.requests:
            spent = cost.per_request()
            cells = (1e3 * spent.get(role, 0.0) for role in _ROLES)
            yield (
                measure,
                str(setup),
                *(f"{cell:.1f}" if cell else "" for cell in cells),
                f"{1e3 * sum(spent.values()):.1f}",
            )


def _answers(results: Results) -> Iterator[Row]:
    for graph, found in results.answers().items():
        right = f"{found.right}/{found.about_one}"
        yield (graph, str(found.given), right, f"{found.same}/{found.compared}")


def _complaints(results: Results) -> Iterator[str]:
    for graph, reasons in results.broken.items():
        yield from (f"{graph}: {reason.splitlines()[0]}" for reason in reasons)
    for (setup, measure), series in results.series.items():
        if series.failures:
            count = len(series.failures)
            yield f"{setup}: {measure}: {count} failed, the first: {series.failures[0]:.200}"
