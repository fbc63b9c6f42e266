# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The file, and the tables: on the terminal and in Markdown."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.results import Results, Series
from benchmarks.suites import Suite
from benchmarks.targets import targets

PACKAGES: Final = ("ai-dynamo", "nixl", "sglang", "torch", "dynamo-sglang-mm-resume")
#: Columns of every suite, between those of its case and those of its ratios.
_FIGURES: Final = ("n", "median", "p95", "p99", "unit")
_TARGETS: Final = ("target", "measured", "should be", "verdict")
_TEXT: Final = frozenset({"contender", "measure", "unit", "step", "role", "free blocks", *_TARGETS})


@dataclass(frozen=True, slots=True)
class Run:
    """When, where and with what."""

    started: datetime
    load_before: tuple[float, float, float]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are text."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> Iterator[str]:
        yield f"## {self.title}"
        yield ""
        if self.note:
            yield self.note
            yield ""
        yield _line(self.columns)
        yield _line(["---" if column in _TEXT else "---:" for column in self.columns])
        for row in self.rows:
            yield _line(row)

    def on_terminal(self) -> RichTable:
        table = RichTable(title=self.title, caption=self.note, title_justify="left")
        for column in self.columns:
            table.add_column(column, justify="left" if column in _TEXT else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def show(console: Console, results: Results, suites: Sequence[Suite]) -> None:
    """All tables, then what failed."""
    for table in tables(results, suites):
        console.print(table.on_terminal())
    for failure in failures(results):
        console.print(failure, markup=False)


def write(path: Path, run: Run, results: Results, suites: Sequence[Suite]) -> None:
    """`path`, JSON, and the tables beside it as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_json(as_dict(run, results)))
    path.with_suffix(".md").write_text("\n".join(_document(run, results, suites)) + "\n")


def tables(results: Results, suites: Sequence[Suite]) -> Iterator[Table]:
    """One per suite that was run, then the targets."""
    for suite in suites:
        if results.of(suite.name):
            yield _table(results, suite)
    rows = [
        (t.what, "-" if t.value is None else f"{_figure(t.value)} {t.unit}", t.target, t.verdict)
        for t in targets(results)
    ]
    yield Table("Targets", "", _TARGETS, rows)


def failures(results: Results) -> list[str]:
    """One line for each series that was not, or not fully, measured."""
    return [
        f"{series.suite}, {', '.join(_case(series))}: {series.contender} fails: {series.failure}"
        for series in results
        if series.failure
    ]


def as_dict(run: Run, results: Results) -> dict[str, Any]:
    return {
        "started": run.started.isoformat(timespec="seconds"),
        "options": run.options,
        "machine": machine(),
        "load": {"before": run.load_before, "after": os.getloadavg()},
        "targets": [target.as_dict() for target in targets(results)],
        "series": [series.as_dict() for series in results],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _table(results: Results, suite: Suite) -> Table:
    return (_wide if suite.is_wide else _long)(suite, results.of(suite.name), results)


def _long(suite: Suite, found: list[Series], results: Results) -> Table:
    """A row for each series."""
    several = len({series.measure for series in found}) > 1
    middle = (*(["measure"] if several else []), "contender", *_FIGURES)
    rows = []
    for series in found:
        named = (*_case(series), *([series.measure] if several else []), series.contender)
        ratios = [base(results, series) for base in suite.ratios.values()]
        rows.append((*named, *_figures(series), *_ratios(series, ratios)))
    return Table(suite.title, suite.note, (*suite.axes, *middle, *suite.ratios), rows)


def _wide(suite: Suite, found: list[Series], _: Results) -> Table:
    """A row for each case and contender, with the medians of all measures."""
    measures = {series.measure: series.unit for series in found}
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for series in found:
        row = rows.setdefault((*_case(series), series.contender), {})
        row[series.measure] = _figure(series.median) if series.values else "fails"
    columns = (*suite.axes, "contender", *(f"{name}, {unit}" for name, unit in measures.items()))
    cells = [(*named, *(row.get(m, "") for m in measures)) for named, row in rows.items()]
    return Table(suite.title, f"{suite.note} Medians.", columns, cells)


def _case(series: Series) -> list[str]:
    return [f"{part:,}" if isinstance(part, int) else part for part in series.case]


def _figures(series: Series) -> tuple[str, ...]:
    if not series.values:
        return ("", "fails" if series.failure else "", "", "", series.unit)
    p99 = "-" if series.p99 is None else _figure(series.p99)
    middle = (_figure(series.median), _figure(series.percentile(0.95)))
    return (str(len(series.values)), *middle, p99, series.unit)


def _ratios(series: Series, bases: Sequence[float | None]) -> list[str]:
    if not series.values:
        return ["" for _ in bases]
    return [f"{series.median / base:.2f}" if base else "" for base in bases]


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    if not value or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}"


def _document(run: Run, results: Results, suites: Sequence[Suite]) -> Iterator[str]:
    about = machine()
    yield "# Hand-off of embeddings"
    yield ""
    yield (
        f"{run.started:%Y-%m-%d}, {about['processor']}, {about['cores']} cores, "
        f"{about['memory_gib']} GiB, kernel {about['kernel']}, Python {about['python']}, "
        f"{', '.join(f'{name} {number}' for name, number in about['packages'].items())}; "
        f"load before {run.load_before[0]:.1f}. Everything on one host, between processes. "
        "p99 where there are 100 values or more. Written by `make bench`."
    )
    for table in tables(results, suites):
        yield ""
        yield from table.markdown()
    if broken := failures(results):
        yield ""
        yield "## What failed"
        yield ""
        yield from (f"- {line}" for line in broken)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _json(content: dict[str, Any]) -> str:
    """Indented, with every series in a line of its own."""
    rest = {key: value for key, value in content.items() if key != "series"}
    head = json.dumps(rest, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in content["series"])
    return f'{head},\n "series": [\n{lines}\n ]\n}}\n'


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
