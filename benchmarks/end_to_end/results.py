# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What was measured: times, failures, and answers to compare."""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.end_to_end.graphs import AGGREGATED
from benchmarks.end_to_end.questions import Question
from benchmarks.report import machine

#: Failures and differing answers of each kind that are written down in full.
_EXAMPLES: Final = 5


@dataclass(frozen=True, order=True)
class Setup:
    """A graph with a number of encode workers; 0 where it has none."""

    graph: str
    encode_workers: int

    def __str__(self) -> str:
        if not self.encode_workers:
            return self.graph
        return f"{self.graph}, {self.encode_workers} encode"


@dataclass
class Series:
    """One measurement of one setup, in seconds."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def percentile(self, fraction: float) -> float | None:
        """The smallest time that this fraction of all does not exceed."""
        if not self.seconds:
            return None
        return sorted(self.seconds)[math.ceil(fraction * len(self.seconds)) - 1]

    def as_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"failed": len(self.failures)}
        if self.failures:
            entry["failures"] = self.failures[:_EXAMPLES]
        if self.seconds:
            entry |= {
                "median_ms": _ms(self.median),
                "p95_ms": _ms(self.percentile(0.95)),
                "ms": [_ms(seconds) for seconds in self.seconds],
            }
        return entry


@dataclass
class Cost:
    """Processor time of the requests of one measurement."""

    requests: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By role."""

    def per_request(self) -> dict[str, float]:
        """In seconds, by role."""
        return {role: spent / self.requests for role, spent in self.seconds.items()}


@dataclass
class Answers:
    """What one graph answered, over all."""

    given: int = 0
    right: int = 0
    """As the model was trained, of those about one picture."""
    about_one: int = 0
    compared: int = 0
    """Given, and by the aggregated engine as well."""
    same: int = 0
    different: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "given": self.given,
            "right": f"{self.right}/{self.about_one}",
            f"same as {AGGREGATED}": f"{self.same}/{self.compared}",
            "different": self.different[:_EXAMPLES],
        }


class Results:
    """All series, in order of first appearance."""

    def __init__(self) -> None:
        self.series: dict[tuple[Setup, str], Series] = {}
        self.commands: dict[str, Sequence[str]] = {}
        """How each graph was started: the command of each process."""
        self.broken: dict[str, list[str]] = defaultdict(list)
        """Graphs that did not start, or did not live through their turn."""
        self.costs: dict[tuple[Setup, str], Cost] = defaultdict(Cost)
        self.rotations = 0
        self._texts: dict[str, dict[str, list[str]]] = defaultdict(dict)
        self._expected: dict[str, str | None] = {}
        self.started = datetime.now(UTC)

    def add(self, setup: Setup, measure: str, seconds: float) -> None:
        self._of(setup, measure).seconds.append(seconds)

    def fail(self, setup: Setup, measure: str, why: str) -> None:
        self._of(setup, measure).failures.append(why)

    def spend(
        self, setup: Setup, measure: str, requests: int, seconds: Mapping[str, float]
    ) -> None:
        cost = self.costs[setup, measure]
        cost.requests += requests
        for role, spent in seconds.items():
            cost.seconds[role] += spent

    def answered(self, setup: Setup, question: Question, text: str) -> None:
        """Note the text of an answer; a question may be asked more than once."""
        self._texts[question.key].setdefault(setup.graph, []).append(text)
        self._expected[question.key] = question.expected

    def median(self, measure: str, graph: str, encode_workers: int) -> float | None:
        """In seconds; None where nothing was measured."""
        series = self.series.get((Setup(graph, encode_workers), measure))
        return None if series is None else series.median

    @property
    def setups(self) -> list[Setup]:
        return sorted({setup for setup, _ in self.series}, key=self._order)

    @property
    def measures(self) -> list[str]:
        return list(dict.fromkeys(measure for _, measure in self.series))

    def answers(self) -> dict[str, Answers]:
        """By graph: are they right, and the aggregated engine's own?"""
        found: dict[str, Answers] = defaultdict(Answers)
        for key, texts in self._texts.items():
            reference = texts.get(AGGREGATED, [None])[0]
            for graph, given in texts.items():
                for text in given:
                    _compare(found[graph], key, text, self._expected[key], reference)
        return dict(found)

    def as_dict(self) -> dict[str, Any]:
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "machine": machine(),
            "load_after": os.getloadavg(),
            "rotations": self.rotations,
            "commands": self.commands,
            "series": [
                {"graph": s.graph, "encode_workers": s.encode_workers, "measure": m, **e.as_dict()}
                for (s, m), e in self.series.items()
            ],
            "processor_time": [
                {
                    "graph": setup.graph,
                    "encode_workers": setup.encode_workers,
                    "measure": measure,
                    "requests": cost.requests,
                    "ms": {role: _ms(spent) for role, spent in cost.per_request().items()},
                }
                for (setup, measure), cost in self.costs.items()
            ],
            "broken": dict(self.broken),
            "answers": {graph: found.as_dict() for graph, found in self.answers().items()},
        }

    def _of(self, setup: Setup, measure: str) -> Series:
        return self.series.setdefault((setup, measure), Series())

    def _order(self, setup: Setup) -> tuple[int, int]:
        graphs = list(dict.fromkeys(setup.graph for setup, _ in self.series))
        return setup.encode_workers, graphs.index(setup.graph)


def _compare(
    answers: Answers, key: str, text: str, expected: str | None, reference: str | None
) -> None:
    answers.given += 1
    if expected is not None:
        answers.about_one += 1
        answers.right += expected.startswith(text.strip())
    if reference is None:
        return
    answers.compared += 1
    answers.same += text == reference
    if text != reference:
        answers.different.append({"key": key, "answer": text, AGGREGATED: reference})


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
