# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/results.py`: what is said of the values."""

import pytest

from benchmarks.results import P99_FROM, Results, Series, ratio


def series_of(*values: float) -> Series:
    return Series("suite", "measure", "ms", (), "ours", list(values))


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed() -> None:
    series = series_of(*range(200, 0, -1))
    assert series.percentile(0.95) == 190
    assert series.p99 == 198
    assert series.median == 100.5


def test_one_value_is_all_percentiles_but_the_99th() -> None:
    series = series_of(7.0)
    assert (series.median, series.percentile(0.95), series.p99) == (7.0, 7.0, None)


@pytest.mark.parametrize(("count", "known"), [(P99_FROM - 1, False), (P99_FROM, True)])
def test_no_99th_percentile_of_too_few(count: int, known: bool) -> None:
    assert (series_of(*range(count)).p99 is not None) == known


def test_cases_are_sorted_by_their_numbers_and_keep_the_order_of_texts() -> None:
    results = Results()
    for case in ((1024, "write"), (64, "write"), (64, "copy"), (1024, "copy")):
        results.add("suite", "measure", "ms", case, "ours", 1.0)
    cases = [series.case for series in results.of("suite")]
    assert cases == [(64, "write"), (64, "copy"), (1024, "write"), (1024, "copy")]


def test_a_failure_is_no_value() -> None:
    results = Results()
    results.fail("suite", "measure", "ms", (1,), "theirs", "it hung")
    results.add("suite", "measure", "ms", (1,), "ours", 3.0)
    assert results.failed("suite", "measure", (1,), "theirs")
    assert not results.failed("suite", "measure", (1,), "ours")
    assert results.median("suite", "measure", (1,), "theirs") is None
    assert results.best("suite", "measure", (1,), ("theirs", "ours")) == 3.0


def test_the_best_of_those_that_were_measured() -> None:
    results = Results()
    for name, value in (("a", 5.0), ("b", 2.0)):
        results.add("suite", "measure", "ms", (), name, value)
    assert results.best("suite", "measure", (), ("a", "b", "c")) == 2.0
    assert results.best("suite", "measure", (), ("c",)) is None


def test_a_ratio_needs_both_sides() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(None, 2.0) is None
    assert ratio(3.0, None) is None
