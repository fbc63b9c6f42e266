# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The table of docs/metrics.md, from the catalogue that the workers' `/metrics` come from.

python docs/make_metrics.py            print it
python docs/make_metrics.py --write    put it into docs/metrics.md
"""

import sys
from pathlib import Path

from sections import main

from dynamo.sglang_mm_resume.metrics import ALL, CATALOGUE, PREFIX, Metric

DOCUMENT = Path(__file__).with_name("metrics.md")
#: Values of a label that are told in full; of more, only how many there are.
MAX_VALUES = 4


def table() -> str:
    """One row per metric, in the order of the catalogue."""
    rows = [
        ("metric", "type", "unit", "workers", "labels", "meaning"),
        ("---", "---", "---", "---", "---", "---"),
        *(_row(metric) for metric in CATALOGUE),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(metric: Metric) -> tuple[str, ...]:
    return (
        f"`{metric.full_name.removeprefix(PREFIX)}`",
        metric.kind,
        metric.unit,
        "all" if set(metric.roles) == set(ALL) else ", ".join(metric.roles),
        "; ".join(_label(name, *values) for name, values in metric.labels.items()),
        metric.text,
    )


def _label(name: str, *values: str) -> str:
    if not values:
        return f"`{name}`"
    told = ", ".join(f"`{value}`" for value in values[:MAX_VALUES])
    more = len(values) - MAX_VALUES
    return f"`{name}`: {told}" + (f" and {more} more" if more > 0 else "")


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "metrics", table()))
