# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/tuning.md, from the newest run of `make bench`.

python docs/make_tuning.py            print them
python docs/make_tuning.py --write    put them into docs/tuning.md
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from figures import Figures, hand_off, table
from sections import main_of

DOCUMENT = Path(__file__).with_name("tuning.md")

BLOCK_SIZE: Final = 128
DEFAULT_GRANTS: Final = {"1,024 tokens": "fixed", "follows the lengths": "adaptive"}
"""Name to contender."""
ADAPTIVE_TIME: Final = "hand-off, from the reservation on"


def sections() -> dict[str, str]:
    """All of them, by name."""
    run = hand_off()
    return {
        "figures": source(run),
        "grants": grants(run),
        "crowds": crowds(run),
        "rounds": rounds(run),
        "pools": pools(run),
        "concurrency": crowd(run),
    }


def source(run: Figures) -> str:
    """Where the figures are from."""
    machine = run.content["machine"]
    packages = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("ai-dynamo", "sglang", "nixl")
    )
    return (
        f"All figures: medians of [the run of {run.name}](../benchmarks/results/{run.name}.md), "
        f"{machine['processor']}, {machine['cores']} cores, no GPU, {packages}; embeddings of "
        "width 3,584 in bfloat16, between processes of one host. `make bench` repeats it on your "
        "machine."
    )


def grants(run: Figures) -> str:
    """Does a second grant cost anything?"""
    return table(
        ("default grant", "rounds", "hand-off, ms", "p95, ms"),
        (
            (
                name,
                median(run, "adaptive", "rounds", contender, [2000, 1]),
                median(run, "adaptive", ADAPTIVE_TIME, contender, [2000, 1]),
                percentile(95, run, "adaptive", ADAPTIVE_TIME, contender, [2000, 1]),
            )
            for name, contender in DEFAULT_GRANTS.items()
        ),
    )


def crowds(run: Figures) -> str:
    """What do grants that are too large cost?"""
    return table(
        ("default grant", "wait for blocks, ms", "p99, ms", "hand-off, ms"),
        (
            (
                name,
                median(run, "adaptive", "wait for blocks", contender, [64, 64]),
                percentile(99, run, "adaptive", "wait for blocks", contender, [64, 64]),
                median(run, "adaptive", ADAPTIVE_TIME, contender, [64, 64]),
            )
            for name, contender in DEFAULT_GRANTS.items()
        ),
    )


def rounds(run: Figures) -> str:
    """What does a round cost, where there is room and where there is none?"""
    return table(
        ("rounds", "the pool has room, ms", "every round waits, ms"),
        (
            (
                f"{case[0]}",
                median(run, "rounds", "hand-off", "ahead", case),
                median(run, "rounds", "hand-off", "waiting", case),
            )
            for case in run.cases(suite="rounds", measure="hand-off", contender="ahead")
        ),
    )


def pools(run: Figures) -> str:
    """How small may a pool be?"""
    return table(
        ("blocks", "tokens in the pool", "rounds", "hand-off, ms", "p95, ms"),
        (
            (
                f"{case[0]}",
                f"{case[0] * BLOCK_SIZE:,}",
                median(run, "pools", "rounds", "ours", case),
                median(run, "pools", "hand-off", "ours", case),
                percentile(95, run, "pools", "hand-off", "ours", case),
            )
            for case in run.cases(suite="pools", measure="hand-off", contender="ours")
        ),
    )


def crowd(run: Figures) -> str:
    """How many at once does the default pool carry?"""
    return table(
        ("at once", "hand-off, ms", "p95, ms", "wait for blocks, p95, ms", "GB/s in all"),
        (
            (
                f"{case[0]}",
                median(run, "concurrency", "hand-off", "ours", case),
                percentile(95, run, "concurrency", "hand-off", "ours", case),
                percentile(95, run, "concurrency", "wait for blocks", "ours", case),
                median(run, "concurrency", "throughput", "ours", case),
            )
            for case in run.cases(suite="concurrency", measure="hand-off", contender="ours")
        ),
    )


def median(run: Figures, suite: str, measure: str, contender: str, case: Iterable[int]) -> str:
    """Of this series, to three figures."""
    series = {"suite": suite, "measure": measure, "contender": contender, "case": list(case)}
    return _figure(run.median(**series))


def percentile(
    rank: int, run: Figures, suite: str, measure: str, contender: str, case: Iterable[int]
) -> str:
    """The same; a dash where there are too few values for it."""
    series = {"suite": suite, "measure": measure, "contender": contender, "case": list(case)}
    value = run.percentile(rank, **series)
    return "-" if value is None else _figure(value)


def _figure(value: float) -> str:
    """`0.24`, `34.3`, `1,240`; times below the clock's grain as they came."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main_of(DOCUMENT, sections()))
