# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured: statistics, the table and the file."""

import json
import math
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import FLOOR, UPSTREAM
from benchmarks.pair import Workload

PACKAGES = ("ai-dynamo", "nixl", "torch", "dynamo-sglang-mm-resume")


@dataclass(slots=True)
class Series:
    """One contender at one length."""

    name: str
    tokens: int
    seconds: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        return sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]


class Results:
    """All series, in order of first appearance, and the memory of the processes."""

    def __init__(self, workload: Workload, repeats: int) -> None:
        self.workload = workload
        self.repeats = repeats
        self.peak_rss: dict[str, dict[str, int]] = {}
        self._series: dict[tuple[str, int], Series] = {}
        self._started = datetime.now(UTC)
        self._load_before = os.getloadavg()

    def add(self, name: str, tokens: int, seconds: float) -> None:
        self._of(name, tokens).seconds.append(seconds)

    def fail(self, name: str, tokens: int, why: str) -> None:
        self._of(name, tokens).failure = why

    def failed(self, name: str, tokens: int) -> bool:
        series = self._series.get((name, tokens))
        return series is not None and bool(series.failure)

    def at(self, tokens: int) -> list[Series]:
        return [series for series in self._series.values() if series.tokens == tokens]

    def floor(self, tokens: int) -> float | None:
        """Median of the bare WRITE."""
        return self._best((FLOOR,), tokens)

    def upstream(self, tokens: int) -> float | None:
        """Median of Dynamo's best mode."""
        return self._best(UPSTREAM, tokens)

    def as_dict(self) -> dict[str, Any]:
        return {
            "started": self._started.isoformat(timespec="seconds"),
            "machine": machine(),
            "load": {"before": self._load_before, "after": os.getloadavg()},
            "workload": {**asdict(self.workload), "dtype": "bfloat16", "repeats": self.repeats},
            "series": [self._entry(series) for series in self._series.values()],
            "peak_rss_bytes": self.peak_rss,
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def show(self, console: Console) -> None:
        console.print(self._times())
        for series in self._series.values():
            if series.failure:
                console.print(f"{series.name} at {series.tokens:,} tokens fails: {series.failure}")
        console.print(self._memory())

    def _of(self, name: str, tokens: int) -> Series:
        return self._series.setdefault((name, tokens), Series(name, tokens))

    def _best(self, names: tuple[str, ...], tokens: int) -> float | None:
        found = [s.median for s in self.at(tokens) if s.name in names and s.seconds]
        return min(found, default=None)

    def _entry(self, series: Series) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": series.name, "tokens": series.tokens}
        if series.failure:
            entry["fails"] = series.failure
        if series.seconds:
            entry |= {
                "median_ms": round(series.median * 1e3, 4),
                "p95_ms": round(series.p95 * 1e3, 4),
                "to_best_dynamo": _ratio(series.median, self.upstream(series.tokens)),
                "to_floor": _ratio(series.median, self.floor(series.tokens)),
                "ms": [round(s * 1e3, 4) for s in series.seconds],
            }
        return entry

    def _times(self) -> Table:
        hidden = self.workload.hidden
        table = Table(title=f"Hand-off of embeddings, hidden {hidden} bfloat16, {self.repeats}x")
        for column in ("tokens", "MB", "contender"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for column in ("median ms", "p95 ms", "x best Dynamo", "x bare WRITE"):
            table.add_column(column, justify="right")
        for tokens in self.workload.tokens:
            table.add_section()
            for number, series in enumerate(self.at(tokens)):
                size = (
                    (f"{tokens:,}", f"{tokens * hidden * 2 / 1e6:.1f}") if not number else ("", "")
                )
                table.add_row(*size, series.name, *self._cells(series))
        return table

    def _cells(self, series: Series) -> tuple[str, ...]:
        if not series.seconds:
            return ("fails", "", "", "")
        ratios = (self.upstream(series.tokens), self.floor(series.tokens))
        return (
            f"{series.median * 1e3:.2f}",
            f"{series.p95 * 1e3:.2f}",
            *(f"{series.median / base:.2f}" if base else "-" for base in ratios),
        )

    def _memory(self) -> Table:
        table = Table(title="Most resident memory, MiB")
        for column in ("contender", "receiver", "writer"):
            table.add_column(column, justify="left" if column == "contender" else "right")
        for name, peak in self.peak_rss.items():
            table.add_row(name, *(f"{peak[r] / 2**20:,.0f}" for r in ("receiver", "writer")))
        return table


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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _ratio(value: float, base: float | None) -> float | None:
    return round(value / base, 3) if base else None
