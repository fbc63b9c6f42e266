# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: one module per axis. Each has `SUITE`, and says what its figures mean."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.results import Results, Series

if TYPE_CHECKING:
    from benchmarks.bench import Bench

#: The base of a ratio, for one series.
Base = Callable[[Results, Series], float | None]


@dataclass(frozen=True, slots=True)
class Suite:
    """`axes` name the parts of a case; `ratios` are columns of the table, by heading.

    `is_wide`: the table has a column of medians for each measure, and no other figures.
    """

    name: str
    title: str
    note: str
    axes: tuple[str, ...]
    ratios: dict[str, Base]
    run: "Callable[[Bench], Awaitable[None]]"
    is_wide: bool = False
