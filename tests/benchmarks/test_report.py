# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/report.py`, `targets.py` and `plots.py`: what is made of the values."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.__main__ import SUITES, parse
from benchmarks.plots import plot
from benchmarks.results import Results
from benchmarks.suites import allocator, concurrency, lengths, memory, pools, rounds, stages
from benchmarks.targets import NOT_MEASURED, targets
from benchmarks.workload import HIDDEN

ALL = tuple(SUITES.values())


def everything() -> Results:
    """What a run of all suites yields, at least: ours 2 ms where others take more."""
    results = Results()
    for tokens in (64, 1024, 16384):
        for name, value in (
            ("ours", 2.0),
            ("local", 8.0),
            ("nixl-read", 20.0),
            ("bare WRITE", 1.0),
        ):
            results.add(lengths.NAME, lengths.TIME, "ms", (tokens, HIDDEN), name, value)
    for pool, value in ((16, 5.0), (512, 4.0)):
        results.add(pools.NAME, pools.TIME, "ms", (pool,), "ours", value)
        results.add(pools.NAME, pools.ROUNDS, "rounds", (pool,), "ours", 16)
    for num_rounds in (1, 2, 64):
        for mode in (rounds.WAITING, rounds.AHEAD):
            results.add(rounds.NAME, rounds.TIME, "ms", (num_rounds,), mode, 4.0)
            results.add(rounds.NAME, rounds.STALL, "ms", (num_rounds,), mode, 0.0)
            results.add(rounds.NAME, rounds.EXTRA, "ms", (num_rounds,), mode, 1.0)
    for name, value in (("ours", 8.5), ("bare WRITE", 10.0)):
        results.add(concurrency.NAME, concurrency.THROUGHPUT, "GB/s", (64,), name, value)
        results.add(concurrency.NAME, concurrency.UNFAIR, "x", (64,), name, 1.5)
    results.add(concurrency.NAME, concurrency.WAIT, "ms", (64,), "ours", *range(100))
    for role in memory.ROLES:
        for measure in (memory.AHEAD, memory.EXTRA, memory.IDLE):
            results.add(memory.NAME, measure, "x", (role,), "ours", 1.0)
    results.add(allocator.NAME, allocator.TIME, "us", (0, allocator.FRESH), "our pool", 5.0)
    for measure, value in ((stages.BEGINS, 0.5), (stages.ENDS, 1.5), (stages.BUSY, 1.0)):
        results.add(stages.NAME, measure, "ms", (1024, "copy"), "ours", value)
    return results


def run() -> report.Run:
    return report.Run(datetime(2026, 1, 2, tzinfo=UTC), (0.5, 0.5, 0.5), {})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_table_has_a_row_for_each_series_with_its_ratios() -> None:
    table = next(report.tables(everything(), [lengths.SUITE]))
    assert table.columns == (
        "tokens", "hidden", "contender", "n", "median", "p95", "p99", "unit",
        "x best Dynamo", "x bare WRITE",
    )  # fmt: skip
    row = ("1,024", "3,584", "ours", "1", "2.00", "2.00", "-", "ms", "0.25", "2.00")
    assert row in table.rows


def test_a_wide_table_has_a_column_for_each_measure() -> None:
    table = next(report.tables(everything(), [stages.SUITE]))
    assert table.columns[:3] == ("tokens", "step", "contender")
    assert table.rows == [("1,024", "copy", "ours", "0.50", "1.50", "1.00")]


def test_what_was_not_run_has_no_table() -> None:
    titles = [table.title for table in report.tables(Results(), ALL)]
    assert titles == ["Targets"]


def test_who_fails_is_in_the_table_and_below_it(tmp_path: Path) -> None:
    results = everything()
    case = (65536, HIDDEN)
    results.fail(lengths.NAME, lengths.TIME, "ms", case, "nixl-write", "no answer in 30 s")
    report.write(tmp_path / "run.json", run(), results, ALL)
    text = (tmp_path / "run.md").read_text()
    row = next(line for line in text.splitlines() if "65,536" in line)
    assert cells(row)[2:5] == ["nixl-write", "", "fails"]
    assert "lengths, 65,536, 3,584: nixl-write fails: no answer in 30 s" in text


def test_the_file_is_json_with_a_line_for_each_series(tmp_path: Path) -> None:
    results = everything()
    path = tmp_path / "run.json"
    report.write(path, run(), results, ALL)
    content = json.loads(path.read_text())
    assert len(content["series"]) == len(list(results))
    assert content["targets"][0]["verdict"] == "met"
    lines = [line for line in path.read_text().splitlines() if '"contender"' in line]
    assert len(lines) == len(content["series"])


def test_markdown_tables_are_rectangular() -> None:
    for table in report.tables(everything(), ALL):
        lines = [line for line in table.markdown() if line.startswith("|")]
        assert {len(cells(line)) for line in lines} == {len(table.columns)}, table.title


def test_a_run_of_everything_leaves_no_target_unmeasured() -> None:
    assert [t.what for t in targets(everything()) if t.verdict == NOT_MEASURED] == []


def test_no_target_without_values() -> None:
    assert {target.verdict for target in targets(Results())} == {NOT_MEASURED}


def test_targets_are_met_at_their_limits_and_not_beyond() -> None:
    verdicts = {target.what: target for target in targets(everything())}
    assert verdicts["1,024 tokens / Dynamo's best mode"].value == 0.25
    assert verdicts["1,024 tokens / Dynamo's best mode"].verdict == "met"
    assert verdicts["1,024 tokens / bare WRITE"].verdict == "not met"
    assert verdicts["16,384 tokens / bare WRITE"].verdict == "met"  # 2.0 of 2.0
    assert verdicts["64 at once: throughput / bare WRITE"].verdict == "met"  # 0.85 of 0.85
    assert verdicts["16,384 tokens through 16 blocks: rounds"].verdict == "met"  # 16, at least 8
    assert verdicts["64 at once: wait for blocks, p99"].value == 98
    assert verdicts["64 at once: wait for blocks, p99"].verdict == "not met"


def test_plots_are_white_pictures(tmp_path: Path) -> None:
    written = plot(everything(), tmp_path / "run.json")
    names = [path.name for path in written]
    assert names == [
        f"run-{n}.png" for n in ("lengths", "pools", "rounds", "concurrency", "stages")
    ]
    for path in written:
        with Image.open(path) as picture:
            assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255), path.name


def test_nothing_to_plot(tmp_path: Path) -> None:
    assert plot(Results(), tmp_path / "run.json") == []


def test_all_suites_by_default_and_some_by_name() -> None:
    assert parse([]).suites == ALL
    assert parse(["--suite", "pools,lengths"]).suites == (pools.SUITE, lengths.SUITE)
    assert parse(["--only", "ours,bare WRITE"]).only == ("ours", "bare WRITE")


@pytest.mark.parametrize("arguments", [["--suite", "speed"], ["--only", "ours,theirs"]])
def test_unknown_names_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "unknown" in capsys.readouterr().err
