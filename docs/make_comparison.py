# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The measured comparison in README.md, from the newest runs of the benchmarks.

python docs/make_comparison.py            print it
python docs/make_comparison.py --write    put it into README.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from figures import HIDDEN, Figures, hand_off, number, over_http, table
from sections import main

DOCUMENT = Path(__file__).resolve().parents[1] / "README.md"

MODES = ("local", "nixl-write", "nixl-read")
TOKENS = (64, 1024, 4096, 16384, 65536)
REQUESTS = {
    "one image, whole answer": 1,
    "64 requests at once, wall time": 1,
    "four images in one request, first token": 2,
    "the same image of 448 px again, first token": 1,
}
"""Measure to number of encode workers."""


def comparison() -> str:
    """Both tables, and the plots of the same runs."""
    bench, http = hand_off(), over_http()
    contenders = ("ours", *MODES, "bare WRITE")
    return "\n\n".join(
        [
            f"{_machine(bench)} Medians in milliseconds, all contenders in turns within one run "
            "(`make bench`): from the embedding on the encode side to the contiguous tensor on "
            "the prefill side, width 3,584, bfloat16.",
            table(
                ("tokens", "ours", *(f"Dynamo `{mode}`" for mode in MODES), "bare NIXL write"),
                _hand_offs(bench, contenders),
            ),
            f"![Hand-off by length](benchmarks/results/{bench.name}-lengths.png)",
            "Whole graphs over HTTP (`make bench-http`), the demo's model, the same pictures and "
            "answers; *aggregated* is Dynamo's single worker that encodes by itself:",
            table(
                ("request", "ours", *(f"Dynamo `{mode}`" for mode in MODES), "aggregated"),
                _requests(http),
            ),
            f"![Whole graphs over HTTP](benchmarks/results/{http.name}.png)",
        ]
    )


def _machine(bench: Figures) -> str:
    machine = bench.content["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, no GPU."


def _hand_offs(bench: Figures, contenders: tuple[str, ...]) -> Iterator[list[str]]:
    for tokens in TOKENS:
        medians = (
            bench.median(
                suite="lengths", measure="hand-off", case=[tokens, HIDDEN], contender=contender
            )
            for contender in contenders
        )
        yield [f"{tokens:,}", *map(number, medians)]


def _requests(http: Figures) -> Iterator[list[str]]:
    for measure, encode_workers in REQUESTS.items():
        workers = "two encode workers" if encode_workers == 2 else "one encode worker"
        medians = [
            http.median(graph=graph, measure=measure, encode_workers=encode_workers)
            for graph in ("ours", *MODES)
        ]
        medians.append(http.median(graph="aggregated", measure=measure))
        yield [f"{measure}, {workers}", *map(number, medians)]


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "comparison", comparison()))
