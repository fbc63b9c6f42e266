# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured: series of values, and what is said of them."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

#: From so many values on, their 99th percentile is more than the largest of them.
P99_FROM: Final = 100

Case = tuple[int | str, ...]


@dataclass(slots=True)
class Series:
    """One contender in one case of a suite. `values` in `unit`."""

    suite: str
    measure: str
    unit: str
    case: Case
    contender: str
    values: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, fraction: float) -> float:
        """The smallest value that this fraction of all does not exceed."""
        return sorted(self.values)[math.ceil(fraction * len(self.values)) - 1]

    @property
    def p99(self) -> float | None:
        """None where there are too few values to name one."""
        return self.percentile(0.99) if len(self.values) >= P99_FROM else None

    def as_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "suite": self.suite,
            "measure": self.measure,
            "unit": self.unit,
            "case": self.case,
            "contender": self.contender,
        }
        if self.failure:
            entry["fails"] = self.failure
        if self.values:
            p99 = self.p99
            entry |= {
                "n": len(self.values),
                "median": _short(self.median),
                "p95": _short(self.percentile(0.95)),
                "p99": None if p99 is None else _short(p99),
                "min": _short(min(self.values)),
                "max": _short(max(self.values)),
                "values": [_short(value) for value in self.values],
            }
        return entry


class Results:
    """All series, in order of first appearance."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, Case, str], Series] = {}

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def add(
        self, suite: str, measure: str, unit: str, case: Case, contender: str, *values: float
    ) -> None:
        key = (suite, measure, case, contender)
        series = self._series.setdefault(key, Series(suite, measure, unit, case, contender))
        series.values += values

    def fail(
        self, suite: str, measure: str, unit: str, case: Case, contender: str, why: str
    ) -> None:
        self.add(suite, measure, unit, case, contender)
        self._series[(suite, measure, case, contender)].failure = why

    def failed(self, suite: str, measure: str, case: Case, contender: str) -> bool:
        series = self._series.get((suite, measure, case, contender))
        return series is not None and bool(series.failure)

    def of(self, suite: str, measure: str | None = None) -> list[Series]:
        """Of a suite, sorted by the numbers of the case, then in order of appearance."""
        found = [s for s in self if s.suite == suite and measure in (None, s.measure)]
        return sorted(found, key=lambda series: _rank(series.case))

    def find(self, suite: str, measure: str, case: Case, contender: str) -> Series | None:
        """A series with values, if there is one."""
        series = self._series.get((suite, measure, case, contender))
        return series if series is not None and series.values else None

    def median(self, suite: str, measure: str, case: Case, contender: str) -> float | None:
        series = self.find(suite, measure, case, contender)
        return None if series is None else series.median

    def best(self, suite: str, measure: str, case: Case, contenders: Iterable[str]) -> float | None:
        """The least median among `contenders`."""
        medians = (self.median(suite, measure, case, name) for name in contenders)
        return min((median for median in medians if median is not None), default=None)


def ratio(value: float | None, base: float | None) -> float | None:
    """`value / base`, where both are known."""
    return value / base if value is not None and base else None


def _rank(case: Case) -> tuple[int, ...]:
    """Numbers by size; texts keep their order."""
    return tuple(part if isinstance(part, int) else 0 for part in case)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
