# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the figures should be: ratios of medians, and one difference."""

from collections.abc import Iterator

from benchmarks.end_to_end.graphs import (
    AGGREGATED,
    LOCAL,
    NIXL_READ,
    NIXL_WRITE,
    OURS,
    UPSTREAM,
)
from benchmarks.end_to_end.measures import (
    AGAIN_LARGE,
    AGAIN_SMALL,
    ANSWER,
    AT_ONCE,
    FOUR,
    NEW_LARGE,
    NEW_SMALL,
)
from benchmarks.end_to_end.results import Results
from benchmarks.results import ratio
from benchmarks.targets import Target


def targets(results: Results) -> list[Target]:
    """In the order of the table."""
    return list(_targets(results))


def _targets(results: Results) -> Iterator[Target]:
    one = f"{ANSWER}, median"
    ours = results.median(ANSWER, OURS, 1)
    for mode, limit in ((NIXL_READ, 0.5), (NIXL_WRITE, 0.25), (LOCAL, 0.95)):
        value = ratio(ours, results.median(ANSWER, mode, 1))
        yield Target(f"{one} / {mode}", value, limit, "x")
    whole = results.median(ANSWER, AGGREGATED, 0)
    more = None if ours is None or whole is None else 1e3 * (ours - whole)
    yield Target(f"{one} - {AGGREGATED}", more, 12, "ms")
    ours = results.median(AT_ONCE, OURS, 1)
    for mode, limit in ((NIXL_READ, 0.4), (LOCAL, 0.8)):
        value = ratio(ours, results.median(AT_ONCE, mode, 1))
        yield Target(f"{AT_ONCE} / {mode}", value, limit, "x")
    upstream = (results.median(FOUR, mode, number) for mode in UPSTREAM for number in (1, 2))
    best = min((median for median in upstream if median is not None), default=None)
    value = ratio(results.median(FOUR, OURS, 2), best)
    yield Target(f"{FOUR}, two encode workers / Dynamo's best mode", value, 0.6, "x")
    for new, again in ((NEW_SMALL, AGAIN_SMALL), (NEW_LARGE, AGAIN_LARGE)):
        value = ratio(results.median(again, OURS, 1), results.median(new, OURS, 1))
        yield Target(f"{again} / the first time", value, 0.5, "x")
