# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the newest complete runs in benchmarks/results, for the documents that show them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
HTTP = "-http.json"
HIDDEN = 3584


@dataclass(frozen=True)
class Figures:
    """One run: of `make bench`, or of `make bench-http`."""

    name: str
    """Of its files, without their extensions."""
    content: Mapping[str, Any]

    def median(self, **wanted: object) -> float:
        """Of the one series with these properties; `KeyError` where there is none."""
        key = "median_ms" if self.name.endswith("-http") else "median"
        return float(self._series(wanted)[key])

    def percentile(self, rank: int, **wanted: object) -> float | None:
        """Of the same; None where a series has too few values for it."""
        return self._series(wanted).get(f"p{rank}")

    def cases(self, **wanted: object) -> list[list[int]]:
        """Of all series with these properties, in rising order."""
        return sorted(s["case"] for s in self.content["series"] if wanted.items() <= s.items())

    def _series(self, wanted: Mapping[str, object]) -> Mapping[str, Any]:
        for series in self.content["series"]:
            if wanted.items() <= series.items():
                return dict(series)
        raise KeyError(wanted)


def hand_off() -> Figures:
    """Of the newest `make bench`."""
    return _newest(path for path in RESULTS.glob("*.json") if not path.name.endswith(HTTP))


def over_http() -> Figures:
    """Of the newest `make bench-http`."""
    return _newest(RESULTS.glob(f"*{HTTP}"))


def number(value: float) -> str:
    """With three digits, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown, figures to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _newest(paths: Iterable[Path]) -> Figures:
    path = max(paths, key=lambda path: path.name)
    return Figures(path.stem, json.loads(path.read_text(encoding="utf-8")))
