# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Draws a view with rich. Plain characters carry the meaning; colours only help."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from dynamo.sglang_mm_resume.top.model import Blocks, Objective, Transfer, View, Worker

#: Cells of a pool's map, each for as many blocks as it takes.
MAP_CELLS: Final = 64

#: State of a block, its character and colour; in this order from the left.
STATES: Final = (
    ("held", "█", "blue"),
    ("quarantined", "!", "bold red"),
    ("cached", "▒", "cyan"),
    ("free", "·", "dim"),
)
_INDENT: Final = (0, 0, 0, 2)
_GOOD, _BAD, _FAINT = "green", "bold red", "dim"
_ID_CELLS: Final = 12


def draw(view: View, clock: str, max_transfers: int) -> RenderableType:
    """One frame. `max_transfers`: rows per worker, the oldest transfers first."""
    if not view.workers:
        return Group(_head(view, clock), Text("no worker is listed", _BAD))
    return Group(
        _head(view, clock),
        _objectives(view),
        *(_worker(worker, max_transfers) for worker in view.workers),
    )


# --- The graph ---


def _head(view: View, clock: str) -> Text:
    namespaces = sorted({w.namespace for w in view.workers if w.namespace})
    silent = sum(worker.error is not None for worker in view.workers)
    text = Text.assemble(("dynamo.sglang_mm_resume", "bold"), f"  {clock}")
    text.append(f"  {_plain(', '.join(namespaces))}  {_number(len(view.workers), 'worker')}")
    if silent:
        text.append(f", {silent} without an answer", _BAD)
    return text


def _objectives(view: View) -> RenderableType:
    table = _table("objective", "limit", f"last {view.window_s:.0f} s", "since start")
    rows = (
        ("resume rate", view.resume_rate, _share),
        ("wait for blocks, p99", view.wait_p99_s, _seconds),
        ("pool use", view.pool_use, _share),
    )
    for name, objective, form in rows:
        table.add_row(
            name,
            form(objective.limit),
            _judged(objective.recent, objective, form(objective.recent)),
            _judged(objective.since_start, objective, form(objective.since_start)),
        )
    return Padding(table, _INDENT)


def _judged(value: float | None, objective: Objective, text: str) -> Text:
    if value is None:
        return Text(text, _FAINT)
    return Text(text, _GOOD if value < objective.limit else _BAD)


# --- One worker ---


def _worker(worker: Worker, max_transfers: int) -> RenderableType:
    parts: list[RenderableType] = [Rule(_title(worker), align="left", style=_FAINT)]
    if worker.error is not None:
        parts.append(_silence(worker))
    if worker.silent_s is None:
        return Group(*parts)
    if worker.pool:
        parts.append(_pool(worker.pool))
    parts.append(_figures(worker))
    if worker.transfers:
        parts.append(_transfers(worker.transfers, max_transfers))
    if worker.failures:
        parts.append(_failures(worker.failures, worker.recent_failures))
    return Group(*parts)


def _title(worker: Worker) -> Text:
    named = worker.name.startswith(f"{worker.role} ")
    title = worker.name if named else f"{worker.role} {worker.name}".strip()
    return Text(_plain(title), _BAD if worker.error is not None else "bold")


def _silence(worker: Worker) -> Padding:
    text = _plain(worker.error or "")
    if worker.silent_s is not None:
        text += f"; what follows is {_seconds(worker.silent_s)} old"
    return Padding(Text(text, _BAD), _INDENT)


def _pool(pool: Blocks) -> Padding:
    text = Text.assemble("pool  ", *_cells(pool), f"  {_share(pool.use)} of {pool.total} in use\n")
    text.append("      ")
    for state, character, style in STATES:
        text.append(f"{character} ", style)
        text.append(f"{getattr(pool, state)} {state}   ")
    text.append(f"at most {pool.peak_used} taken", _FAINT)
    return Padding(text, _INDENT)


def _cells(pool: Blocks) -> Iterable[tuple[str, str]]:
    """The map: cells in proportion to blocks, and one at least where there is a block."""
    counts = [getattr(pool, state) for state, _, _ in STATES]
    for number, (_, character, style) in zip(cells(counts, MAP_CELLS), STATES, strict=True):
        yield character * number, style


def cells(counts: Sequence[int], width: int) -> list[int]:
    """How many of at most `width` cells each count gets: its share, or one if it is not 0.

    As many cells as blocks where that is fewer. `width` is at least the number of counts.
    """
    total = sum(counts)
    width = min(width, total)
    found = [max(1, count * width // total) if count else 0 for count in counts]
    while sum(found) != width:  # of those that have one to spare, or miss the most
        step = 1 if sum(found) < width else -1
        missing = [
            (step * (count / total * width - cell), i)
            for i, (count, cell) in enumerate(zip(counts, found, strict=True))
            if (cell > 1 or step > 0) and count
        ]
        found[max(missing)[1]] += step
    return found


def _figures(worker: Worker) -> Padding:
    parts = [f"{count:,} {name}" for name, count in worker.under_way.items()]
    parts += [_rate(name, value) for name, value in worker.per_s.items()]
    parts += _shares(worker)
    text = Text(_plain(" · ".join(parts)))
    for name, count in worker.waiting.items():
        if count:
            text.append(f" · {count:,} waiting for {_article(name)}", "yellow")
    return Padding(text, _INDENT)


def _shares(worker: Worker) -> Iterable[str]:
    if worker.resume_rate is not None:
        yield f"{_share(worker.resume_rate)} resumed"
    if worker.wait_p99_s is not None:
        yield f"wait p99 {_seconds(worker.wait_p99_s)}"
    if worker.cache_hit_rate is not None:
        yield f"{_share(worker.cache_hit_rate)} cache hits"
    if worker.first_token_p95_s is not None:
        yield f"first token p95 {_seconds(worker.first_token_p95_s)}"


def _transfers(transfers: Sequence[Transfer], most: int) -> Padding:
    table = _table("transfer", "state", "rounds", "tokens", "tokens/s", "age")
    for column in table.columns[2:]:
        column.justify = "right"
    for transfer in transfers[:most]:
        table.add_row(
            Text(_plain(transfer.id)[:_ID_CELLS]),
            Text(_plain(transfer.state), _BAD if transfer.state == "quarantined" else ""),
            _or_dash(transfer.rounds),
            _tokens(transfer),
            _or_dash(transfer.tokens_per_s),
            _seconds(transfer.age_s),
        )
    if len(transfers) > most:
        table.add_row(Text(f"and {len(transfers) - most} more", _FAINT), *repeat("", 5))
    return Padding(table, _INDENT)


def _tokens(transfer: Transfer) -> str:
    if transfer.tokens is None:
        return "-"
    return f"{transfer.tokens:,} of {_or_dash(transfer.total_tokens)}"


def _failures(failures: Mapping[str, int], recent: Mapping[str, int]) -> Padding:
    text = Text("failed  ")
    for i, (name, count) in enumerate(sorted(failures.items())):
        new = recent.get(name, 0)
        text.append(f"{'   ' if i else ''}{_plain(name)} {count:,}", _BAD if new else _FAINT)
        if new:
            text.append(f" (+{new:,})", _BAD)
    return Padding(text, _INDENT)


# --- Words and figures ---


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_FAINT)


def _plain(text: str) -> str:
    """What workers say is text: nothing in it may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _article(name: str) -> str:
    if name.endswith("worker"):
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return name if name.endswith("s") else f"the {name}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:,.1f} s"


def _rate(name: str, value: float) -> str:
    """`12 requests/s`; `3.4 MB written/s`."""
    amount, unit = _amount(value), name
    if name.startswith("bytes "):
        space = "" if amount[-1].isalpha() else " "
        amount, unit = f"{amount}{space}B", name.removeprefix("bytes ")
    return f"{amount} {unit}/s"


def _amount(value: float) -> str:
    """Three digits, with the SI prefix that leaves fewest."""
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}".rstrip()
        value /= 1000
    return f"{value:.3g} T"
