# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""One plot of everything: a panel per measurement, a bar per graph."""

from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.end_to_end.graphs import OURS
from benchmarks.end_to_end.results import Results

_COLUMNS: Final = 3
_PANEL_INCHES: Final = (5.2, 2.9)
_OURS: Final = "#1f77b4"
_OTHERS: Final = "#b0b6bd"


def plot(results: Results, path: Path) -> None:
    """Medians, with a line up to the 95th percentile. Writes nothing where there is nothing."""
    measures = [m for m in results.measures if _bars(results, m)]
    if not measures:
        return
    rows = -(-len(measures) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(width * _COLUMNS, height * rows), squeeze=False
    )
    for place, axis in enumerate(axes.flat):
        if place < len(measures):
            _panel(axis, results, measures[place])
        else:
            axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)


def _panel(axis: Axes, results: Results, measure: str) -> None:
    bars = _bars(results, measure)
    names = [name for name, _, _ in bars]
    medians = [median for _, median, _ in bars]
    above = [p95 - median for _, median, p95 in bars]
    colours = [_OURS if name.startswith(OURS) else _OTHERS for name in names]
    drawn = axis.barh(names, medians, xerr=[[0.0] * len(bars), above], color=colours)
    axis.bar_label(drawn, [f"{median:.0f}" for median in medians], label_type="center", fontsize=8)
    axis.set_title(f"{measure}, ms", fontsize=10)
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(results: Results, measure: str) -> list[tuple[str, float, float]]:
    """Name, median and 95th percentile in milliseconds."""
    found: list[tuple[str, float, float]] = []
    for setup in results.setups:
        series = results.series.get((setup, measure))
        median, p95 = (series.median, series.percentile(0.95)) if series else (None, None)
        if median is not None and p95 is not None:
            found.append((str(setup), 1e3 * median, 1e3 * p95))
    return found
