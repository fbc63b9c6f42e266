# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the dashboard without Grafana: its panels and expressions, evaluated by Prometheus.

python -m deploy.observability.render --prometheus http://HOST:9090 --out page.png
python -m deploy.observability.render --scene --minutes 4 --out docs/images/dashboard.png

The second starts a graph under load and a Prometheus on this machine (scene.py) and draws what that
has scraped. It needs matplotlib, and Debian's package prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.observability import scene
from deploy.observability.panels import ROWS, Panel, Query, Row, Unit
from examples.local_stack import LocalStack, StackError

READY_DEADLINE_S: Final = 300.0
SCRAPE_S: Final = 2.0
#: Windows of rates have so many scrapes, as Grafana's `$__rate_interval`.
SCRAPES_PER_WINDOW: Final = 15
#: Points of a line.
POINTS: Final = 240
HTTP_TIMEOUT_S: Final = 30.0
SEED: Final = 1

_INCHES: Final = 19.0
_ROW_INCHES: Final = 2.9
_STAT_INCHES: Final = 1.6
_DPI: Final = 80
_GOOD, _BAD, _FAINT = "#2a7f3f", "#c22f2f", "#666666"
_WIDE_LEGEND: Final = 3
_LEGEND_ROOM: Final = 1.3


class PrometheusError(RuntimeError):
    """It cannot be reached, or refuses an expression."""


@dataclass(frozen=True)
class Line:
    """One series: seconds since the epoch, and values."""

    legend: str
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Span:
    """What is drawn, in seconds since the epoch; `window_s` is that of rates."""

    start: float
    end: float
    window_s: float


# --- Evaluating ---


def evaluate(url: str, query: Query, span: Span) -> list[Line]:
    """All series of one expression that have a value. Raises `PrometheusError`."""
    answer = _get(
        f"{url}/api/v1/query_range",
        {
            "query": _without_variables(query.expr, span),
            "start": f"{span.start:.3f}",
            "end": f"{span.end:.3f}",
            "step": f"{(span.end - span.start) / POINTS:.3f}",
        },
    )
    lines = [_line(query, series) for series in answer["data"]["result"]]
    return [line for line in lines if line.values]


def _line(query: Query, series: Mapping[str, Any]) -> Line:
    # A share or a quantile of nothing is no number.
    points = [(float(t), float(v)) for t, v in series["values"] if v != "NaN"]
    legend = re.sub(r"\{\{(\w+)\}\}", lambda m: series["metric"].get(m[1], ""), query.legend)
    return Line(legend.strip(), [t for t, _ in points], [v for _, v in points])


def _without_variables(expr: str, span: Span) -> str:
    """All graphs, and a window of a few scrapes."""
    window = f"{int(span.window_s)}s"
    expr = expr.replace("$namespace", ".*").replace("$model", ".*")
    return expr.replace("$__rate_interval", window)


def _get(url: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    body = urllib.parse.urlencode(parameters).encode()
    try:
        with scene.OPENER.open(url, data=body, timeout=HTTP_TIMEOUT_S) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise PrometheusError(f"{url}: {error.read(1000).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise PrometheusError(f"{url}: {error}") from error
    return answer


# --- Drawing ---


def page(url: str, span: Span, caption: str, path: Path) -> None:
    """Evaluate every panel and draw them as the dashboard has them."""
    heights = [_STAT_INCHES if row.panels[0].stat else _ROW_INCHES for row in ROWS]
    figure = pyplot.figure(figsize=(_INCHES, sum(heights) + 0.7), layout="constrained")
    rows = figure.subfigures(len(ROWS) + 1, 1, height_ratios=[*heights, 0.7])
    for place, row in zip(rows, ROWS, strict=False):
        _row(place, row, url, span)
    rows[-1].text(0.01, 0.5, caption, fontsize=9, color=_FAINT, va="center", wrap=True)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    pyplot.close(figure)


def _row(place: SubFigure, row: Row, url: str, span: Span) -> None:
    place.suptitle(row.title, x=0.005, ha="left", fontsize=13, fontweight="bold")
    all_axes = place.subplots(1, len(row.panels))
    for axes, panel in zip(all_axes, row.panels, strict=True):
        lines = [line for query in panel.queries for line in evaluate(url, query, span)]
        axes.set_title(panel.title, fontsize=10, loc="left")
        (_stat if panel.stat else _graph)(axes, panel, lines, span)


def _stat(axes: Axes, panel: Panel, lines: Sequence[Line], span: Span) -> None:
    axes.axis("off")
    for i, line in enumerate(lines):
        value = line.values[-1]
        bad = panel.limit is not None and value >= panel.limit
        x = (i + 0.5) / len(lines)
        figure = shown(value, panel.unit)
        axes.text(x, 0.5, figure, fontsize=20, color=_BAD if bad else _GOOD, ha="center")
        axes.text(x, 0.15, line.legend, fontsize=9, color=_FAINT, ha="center")
    if not lines:
        _nothing(axes)


def _graph(axes: Axes, panel: Panel, lines: Sequence[Line], span: Span) -> None:
    if panel.stacked and lines:
        times = sorted({time for line in lines for time in line.times})
        values = [_at(line, times) for line in lines]
        axes.stackplot([_clock(t) for t in times], values, labels=[line.legend for line in lines])
    else:
        for line in lines:
            axes.plot([_clock(t) for t in line.times], line.values, label=line.legend, lw=1.4)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=_BAD, lw=1, ls="--")
    axes.set_xlim(_clock(span.start), _clock(span.end))
    axes.set_ylim(0, _LEGEND_ROOM * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, panel.unit)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if lines:
        columns = _WIDE_LEGEND if len(lines) > 4 else 2
        axes.legend(fontsize=7, frameon=False, ncols=columns, loc="upper left")
    else:
        _nothing(axes)


def _at(line: Line, times: Sequence[float]) -> list[float]:
    known = dict(zip(line.times, line.values, strict=True))
    return [known.get(time, 0.0) for time in times]


def _clock(seconds: float) -> float:
    """What matplotlib takes for a moment."""
    return float(date2num(datetime.fromtimestamp(seconds, UTC)))


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "nothing", transform=axes.transAxes, color=_FAINT, ha="center")


def shown(value: float, unit: Unit) -> str:
    """A figure with its unit."""
    match unit:
        case Unit.SHARE:
            return f"{100 * value:.0f} %"
        case Unit.SECONDS:
            return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
        case Unit.BYTES_PER_SECOND:
            return f"{_scaled(value)}B/s"
        case Unit.PER_SECOND:
            return f"{value:.3g}/s"
        case Unit.PLAIN:
            return _scaled(value).rstrip()


def _scaled(value: float) -> str:
    for prefix in ("", "k", "M"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} G"


# --- The command line ---


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        if options.scene:
            _draw_scene(options.minutes, options.out)
        else:
            end = time.time()
            span = Span(end - 60 * options.minutes, end, options.window)
            page(options.prometheus.rstrip("/"), span, f"From {options.prometheus}.", options.out)
    except (PrometheusError, scene.NoPrometheus, StackError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.observability.render", description=__doc__.splitlines()[0]
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus", metavar="URL", help="a Prometheus that runs")
    source.add_argument("--scene", action="store_true", help="start a graph and a Prometheus here")
    parser.add_argument("--minutes", type=_positive, default=30.0, help="to draw, or to run")
    parser.add_argument(
        "--window",
        type=_positive,
        default=60.0,
        metavar="SECONDS",
        help="window of rates with --prometheus: four scrape intervals or more",
    )
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png or .svg")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1,000,000")
    return value


def _draw_scene(minutes: float, out: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalStack(scene.graph()) as stack,
    ):
        print("starting the graph", file=sys.stderr)
        stack.wait_ready(READY_DEADLINE_S)
        urls = list(stack.worker_urls.values())
        with scene.prometheus(urls, Path(folder), SCRAPE_S) as url:
            start = time.time()
            print(f"{minutes:g} minutes of load", file=sys.stderr)
            outcomes = asyncio.run(scene.load(stack, 60 * minutes, SEED))
            # The last scrapes may have seen how the clients left.
            end = time.time() - 2 * SCRAPE_S
            span = Span(start, end, SCRAPES_PER_WINDOW * SCRAPE_S)
            page(url, span, _caption(outcomes), out)


def _caption(outcomes: Mapping[str, int]) -> str:
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(outcomes.items()))
    return (
        "Drawn with matplotlib by deploy/observability/render.py: the panels and expressions of "
        "dashboard.json, evaluated by Prometheus. This is not Grafana.\n"
        f"The graph of deploy/observability/scene.py on a machine without a GPU, on "
        f"{datetime.now(UTC):%d %B %Y} (UTC), with {scene.CLIENTS} clients; {scene.STOPPED} stood "
        f"still (SIGSTOP) for {scene.STOPPED_S:g} s half-way. HTTP statuses: {answers}."
    )


if __name__ == "__main__":
    sys.exit(main())
