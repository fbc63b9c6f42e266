# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/tuning.md, from the newest complete run in benchmarks/results/.

python docs/make_figures.py            print them
python docs/make_figures.py --write    put them into docs/tuning.md
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from sections import main_of

DOCUMENT = Path(__file__).with_name("tuning.md")
RESULTS = DOCUMENT.parents[1] / "benchmarks" / "results"

#: What the figures are from; a run in which one of them is missing, or has failed, is not complete.
MEASURES: Final = {
    ("pools", "hand-off"),
    ("pools", "rounds"),
    ("rounds", "hand-off"),
    ("adaptive", "rounds"),
    ("adaptive", "wait for blocks"),
    ("adaptive", "hand-off, from the reservation on"),
    ("concurrency", "hand-off"),
    ("concurrency", "wait for blocks"),
    ("concurrency", "throughput"),
}
BLOCK_SIZE: Final = 128
NONE: Final = "-"

Case = tuple[int, ...]


class Run:
    """One results file of `python -m benchmarks`."""

    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        self.path = path
        self.machine: dict[str, Any] = content["machine"]
        self._series = {
            (entry["suite"], entry["measure"], tuple(entry["case"]), entry["contender"]): entry
            for entry in content["series"]
            if "suite" in entry and "median" in entry
        }

    @property
    def is_complete(self) -> bool:
        """Whether every figure is in it."""
        return {(suite, measure) for suite, measure, *_ in self._series} >= MEASURES

    def cases(self, suite: str, measure: str, contender: str) -> list[Case]:
        """The cases of a measure, in rising order."""
        wanted = (suite, measure, contender)
        return sorted(case for s, m, case, c in self._series if (s, m, c) == wanted)

    def value(self, statistic: str, suite: str, measure: str, case: Case, contender: str) -> str:
        """A median or percentile to three figures; `-` where there are too few values for it."""
        value = self._series[(suite, measure, case, contender)].get(statistic)
        return NONE if value is None else figure(value)


def figure(value: float) -> str:
    """Three figures: `0.24`, `34.3`, `1,240`; times below the clock's grain as they came."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def newest() -> Run:
    """The complete run with the last name. Raises SystemExit where there is none."""
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        run = Run(path)
        if run.is_complete:
            return run
    raise SystemExit(f"error: no complete run in {RESULTS}: make bench writes one")


def source(run: Run) -> str:
    """Where the figures are from."""
    machine = run.machine
    packages = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("ai-dynamo", "sglang", "nixl")
    )
    table = f"../benchmarks/results/{run.path.stem}.md"
    return (
        f"All figures: medians of [the run of {run.path.stem}]({table}), {machine['processor']}, "
        f"{machine['cores']} cores, no GPU, {packages}; embeddings of width 3,584 in bfloat16, "
        "between processes of one host. `make bench` repeats it on your machine."
    )


def grants(run: Run) -> str:
    """Does a second grant cost anything?"""
    case = (2000, 1)
    rows = [("default grant", "rounds", "hand-off, ms", "p95, ms")]
    for label, contender in (("1,024 tokens", "fixed"), ("follows the lengths", "adaptive")):
        time = "hand-off, from the reservation on"
        rows.append(
            (
                label,
                run.value("median", "adaptive", "rounds", case, contender),
                run.value("median", "adaptive", time, case, contender),
                run.value("p95", "adaptive", time, case, contender),
            )
        )
    return table(rows)


def crowds(run: Run) -> str:
    """What do grants that are too large cost?"""
    case = (64, 64)
    rows = [("default grant", "wait for blocks, ms", "p99, ms", "hand-off, ms")]
    for label, contender in (("1,024 tokens", "fixed"), ("follows the lengths", "adaptive")):
        time = "hand-off, from the reservation on"
        rows.append(
            (
                label,
                run.value("median", "adaptive", "wait for blocks", case, contender),
                run.value("p99", "adaptive", "wait for blocks", case, contender),
                run.value("median", "adaptive", time, case, contender),
            )
        )
    return table(rows)


def rounds(run: Run) -> str:
    """What does a round cost, where there is room and where there is none?"""
    rows = [("rounds", "the pool has room, ms", "every round waits, ms")]
    for case in run.cases("rounds", "hand-off", "ahead"):
        times = [
            run.value("median", "rounds", "hand-off", case, contender)
            for contender in ("ahead", "waiting")
        ]
        rows.append((f"{case[0]}", *times))
    return table(rows)


def pools(run: Run) -> str:
    """How small may a pool be?"""
    rows = [("blocks", "tokens in the pool", "rounds", "hand-off, ms", "p95, ms")]
    for case in run.cases("pools", "hand-off", "ours"):
        rows.append(
            (
                f"{case[0]}",
                f"{case[0] * BLOCK_SIZE:,}",
                run.value("median", "pools", "rounds", case, "ours"),
                run.value("median", "pools", "hand-off", case, "ours"),
                run.value("p95", "pools", "hand-off", case, "ours"),
            )
        )
    return table(rows)


def crowd(run: Run) -> str:
    """How many at once does the default pool carry?"""
    rows = [("at once", "hand-off, ms", "p95, ms", "wait for blocks, p95, ms", "GB/s in all")]
    for case in run.cases("concurrency", "hand-off", "ours"):
        rows.append(
            (
                f"{case[0]}",
                run.value("median", "concurrency", "hand-off", case, "ours"),
                run.value("p95", "concurrency", "hand-off", case, "ours"),
                run.value("p95", "concurrency", "wait for blocks", case, "ours"),
                run.value("median", "concurrency", "throughput", case, "ours"),
            )
        )
    return table(rows)


def table(rows: Sequence[Iterable[str]]) -> str:
    """Markdown; the first row is the head."""
    head, *body = [list(row) for row in rows]
    lines = [head, ["---:" for _ in head], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sections() -> dict[str, str]:
    """All of them, by name."""
    run = newest()
    makers = {
        "figures": source,
        "grants": grants,
        "crowds": crowds,
        "rounds": rounds,
        "pools": pools,
        "concurrency": crowd,
    }
    return {name: make(run) for name, make in makers.items()}


if __name__ == "__main__":
    sys.exit(main_of(DOCUMENT, sections()))
