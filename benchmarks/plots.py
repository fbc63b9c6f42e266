# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A picture per suite, on white, so that it reads on pages of any colour."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks.contenders import BARE, CACHED, DYNAMO, MEMCPY, OURS, SGLANG, SIZE_FIRST
from benchmarks.results import Results, Series
from benchmarks.suites import concurrency, lengths, pools, rounds, stages
from benchmarks.workload import HIDDEN

_INCHES: Final = (8.0, 4.6)
_DPI: Final = 120
#: Ours stands out; contenders of one origin share a hue, the floor is grey.
_COLOURS: Final = {
    OURS.name: "#0b62c4",
    SIZE_FIRST.name: "#6aa5e8",
    CACHED.name: "#7a5cc4",
    **dict(zip((c.name for c in DYNAMO), ("#2a9d4a", "#7fbf3f", "#12664f"), strict=True)),
    **dict(zip((c.name for c in SGLANG), ("#d9822b", "#b5482a"), strict=True)),
    BARE.name: "#444444",
    MEMCPY.name: "#999999",
    rounds.WAITING: "#0b62c4",
    rounds.AHEAD: "#d9822b",
}


def plot(results: Results, path: Path) -> list[Path]:
    """A picture beside `path` for each suite that was run. What was written."""
    written = []
    for name, draw in _PLOTS.items():
        if not any(series.values for series in results.of(name)):
            continue
        figure, axes = pyplot.subplots(figsize=_INCHES)
        draw(axes, results)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        target = path.with_name(f"{path.stem}-{name}.png")
        figure.savefig(target, dpi=_DPI, facecolor="white")
        pyplot.close(figure)
        written.append(target)
    return written


def _lengths(axes: Axes, results: Results) -> None:
    found = [s for s in results.of(lengths.NAME) if s.case[1] == HIDDEN]
    for name in _COLOURS:
        _line(axes, [s for s in found if s.contender == name], name)
    _scales(axes, sorted({s.case[0] for s in found}))
    axes.set(
        title=f"One hand-off, {HIDDEN:,} x bfloat16 per token: median and 95th percentile",
        xlabel="tokens",
        ylabel="ms",
    )
    axes.legend(frameon=False, ncols=2, fontsize=8)


def _pools(axes: Axes, results: Results) -> None:
    found = results.of(pools.NAME, pools.TIME)
    _line(axes, found, OURS.name)
    _scales(axes, sorted({s.case[0] for s in found}))
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)
    axes.set(
        title=f"{pools.TOKENS:,} tokens through a pool of so many blocks",
        xlabel="blocks of the pool, on both sides",
        ylabel="ms",
    )


def _rounds(axes: Axes, results: Results) -> None:
    """Every stall, one box per number of rounds and mode; as deployed, if that was measured."""
    found = [s for s in results.of(rounds.NAME, rounds.STALL) if s.values]
    places = sorted({s.case for s in found})
    deployed = any(s.contender == rounds.WAITING for s in found)
    for shift, mode in ((-0.2, rounds.WAITING), (0.2, rounds.AHEAD)):
        boxes = [s for s in found if s.contender == mode + ("" if deployed else rounds.NO_RPC)]
        drawn = axes.boxplot(
            [s.values for s in boxes],
            positions=[places.index(s.case) + shift for s in boxes],
            widths=0.34,
            whis=(1, 99),
            sym="",
            patch_artist=True,
            medianprops={"color": "black"},
        )
        for box in drawn["boxes"]:
            box.set_facecolor(_COLOURS[mode])
        axes.plot([], [], "s", color=_COLOURS[mode], label=mode)
    axes.set_xticks(range(len(places)), [str(case[0]) for case in places])
    axes.set_ylim(bottom=-0.1)  # boxes at zero must show
    axes.set(
        title="Stall before a round: quartiles, 1st and 99th percentile",
        xlabel=f"rounds of {rounds.TOKENS:,} tokens{', over Dynamo RPC' if deployed else ''}",
        ylabel="ms",
    )
    axes.legend(frameon=False)


def _concurrency(axes: Axes, results: Results) -> None:
    found = [s for s in results.of(concurrency.NAME, concurrency.THROUGHPUT) if s.values]
    places = sorted({s.case for s in found})
    names = [name for name in _COLOURS if any(s.contender == name for s in found)]
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        bars = [s for s in found if s.contender == name]
        axes.bar(
            [places.index(s.case) + (number + 0.5) * width - 0.4 for s in bars],
            [s.median for s in bars],
            width,
            color=_COLOURS[name],
            label=name,
        )
    axes.set_xticks(range(len(places)), [str(case[0]) for case in places])
    axes.set(
        title=f"Hand-offs of {concurrency.TOKENS:,} tokens at once, "
        f"{concurrency.WRITERS} writers: median throughput",
        xlabel="at once",
        ylabel="GB/s",
    )
    axes.legend(frameon=False, fontsize=8)


def _stages(axes: Axes, results: Results) -> None:
    """From first beginning to last end of each step, of the hand-off in the middle."""
    tokens = stages.TOKENS[1]
    steps = [s.case for s in results.of(stages.NAME, stages.BEGINS) if s.case[0] == tokens]
    spans = []
    for case in steps:
        began = results.median(stages.NAME, stages.BEGINS, case, OURS.name)
        ended = results.median(stages.NAME, stages.ENDS, case, OURS.name)
        spans.append((began or 0.0, ended or 0.0, str(case[1])))
    spans.sort(reverse=True)
    for place, (began, ended, _) in enumerate(spans):
        axes.barh(place, max(ended - began, 0.01), left=began, color=_COLOURS[OURS.name])
        axes.text(ended, place, f"  {began:.2f} to {ended:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(spans)), [step for _, _, step in spans])
    axes.set(title=f"The steps of our hand-off of {tokens:,} tokens, medians", xlabel="ms")
    axes.set_xlim(0, 1.25 * max(ended for _, ended, _ in spans))


def _line(axes: Axes, found: Sequence[Series], name: str) -> None:
    """Medians, with a thin line up to the 95th percentile."""
    found = [series for series in found if series.values]
    if not found:
        return
    places = [series.case[0] for series in found]
    medians = [series.median for series in found]
    axes.errorbar(
        places,
        medians,
        yerr=[
            [0.0] * len(found),
            [s.percentile(0.95) - m for s, m in zip(found, medians, strict=True)],
        ],
        marker="o",
        markersize=4,
        linewidth=2.4 if name == OURS.name else 1.3,
        elinewidth=0.6,
        color=_COLOURS[name],
        label=name,
        zorder=3 if name == OURS.name else 2,
    )


def _scales(axes: Axes, places: Sequence[int | str]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([int(place) for place in places], [f"{place:,}" for place in places])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


_PLOTS: Final[dict[str, Callable[[Axes, Results], None]]] = {
    lengths.NAME: _lengths,
    pools.NAME: _pools,
    rounds.NAME: _rounds,
    concurrency.NAME: _concurrency,
    stages.NAME: _stages,
}
