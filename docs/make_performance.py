# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The measured part of docs/performance.md, from the newest runs of the benchmarks.

python docs/make_performance.py            print it
python docs/make_performance.py --write    put it into docs/performance.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from figures import Figures, hand_off, number, over_http, table
from sections import main

DOCUMENT = Path(__file__).with_name("performance.md")

ROLES = ("frontend", "processor", "encode", "prefill")
AT_ONCE = "at once"


def figures() -> str:
    """The targets, the steps of a hand-off, and what a request costs each role."""
    bench, http = hand_off(), over_http()
    return "\n\n".join(
        [
            "### Targets",
            table(("target", "measured", "should be", ""), _targets(bench, http)),
            "### Steps of a hand-off",
            "When the first of its kind begins and the last ends, milliseconds from the moment "
            "when the embedding exists, and their sum; steps of different chunks overlap.",
            table(("tokens", "step", "begins", "ends", "in sum"), _steps(bench)),
            f"![Steps of a hand-off](../benchmarks/results/{bench.name}-stages.png)",
            "### Processor time of a request",
            "Of 64 requests with a picture each, at once, one encode worker: milliseconds by "
            f"role, on {http.content['machine']['cores']} cores.",
            table(("graph", *ROLES, "all"), _costs(http)),
        ]
    )


def _targets(*runs: Figures) -> Iterator[list[str]]:
    for run in runs:
        for target in run.content["targets"]:
            value = (
                "-" if target["value"] is None else f"{number(target['value'])} {target['unit']}"
            )
            yield [target["what"], value, target["target"], target["verdict"]]


def _steps(bench: Figures) -> Iterator[list[str]]:
    steps = dict.fromkeys(
        tuple(series["case"]) for series in bench.content["series"] if series["suite"] == "stages"
    )
    for tokens, step in steps:
        medians = (
            bench.median(suite="stages", case=[tokens, step], measure=measure)
            for measure in ("first begins", "last ends", "in sum")
        )
        yield [f"{tokens:,}", step, *map(number, medians)]


def _costs(http: Figures) -> Iterator[list[str]]:
    for cost in http.content["processor_time"]:
        if cost["measure"] == AT_ONCE and cost["encode_workers"] <= 1:
            spent = [cost["ms"].get(role, 0.0) for role in ROLES]
            cells = (number(ms) if ms else "" for ms in spent)
            yield [cost["graph"], *cells, number(sum(spent))]


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "figures", figures()))
