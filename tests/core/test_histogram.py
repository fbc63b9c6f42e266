# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/histogram.py`."""

from dataclasses import asdict

import pytest

from dynamo.sglang_mm_resume.core.histogram import (
    BYTES_PER_SECOND,
    FEW,
    SECONDS,
    TOKENS,
    Histogram,
)


def test_a_value_counts_where_it_belongs() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert asdict(histogram) == {"bounds": (1.0, 2.0), "counts": [2, 2, 1], "sum": 14.0}
    assert histogram.count == 5


def test_histograms_share_nothing() -> None:
    one, other = Histogram(FEW), Histogram(FEW)
    one.observe(3)
    assert (one.count, other.count) == (1, 0)


@pytest.mark.parametrize("bounds", [SECONDS, TOKENS, FEW, BYTES_PER_SECOND])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_the_objective_for_a_wait_can_be_read_off() -> None:
    assert 0.01 in SECONDS
