# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a check is asked for, and the lines of its table: claims, and whether they hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

NO_GPU: Final = "needs a GPU, and --device is cpu"


@dataclass(frozen=True, slots=True)
class Options:
    """`device`: `cpu` or `cuda:N`. `base_gpu_id`: that of the worker that is imitated."""

    device: str
    base_gpu_id: int
    quick: bool

    @property
    def has_gpu(self) -> bool:
        return self.device != "cpu"


class Outcome(StrEnum):
    """`NOT_APPLICABLE` was not checked, and counts neither as well nor as badly."""

    OK = "ok"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Row:
    """`figure` is what was measured, `target` what it is measured against.

    Raises ValueError for a row that is not `OK` and does not say why.
    """

    name: str
    figure: str
    target: str
    outcome: Outcome
    why: str = ""

    def __post_init__(self) -> None:
        if self.outcome is not Outcome.OK and not self.why:
            raise ValueError(f"{self.name}: nothing is said about why it is {self.outcome}")


def judged(name: str, figure: str, target: str, holds: bool, why: str) -> Row:
    """`why`: what it means if it does not hold."""
    if holds:
        return Row(name, figure, target, Outcome.OK)
    return Row(name, figure, target, Outcome.FAILED, why)


def failed(name: str, why: str) -> Row:
    return Row(name, "-", "ends well", Outcome.FAILED, why)


def skipped(name: str, why: str) -> Row:
    return Row(name, "-", "-", Outcome.NOT_APPLICABLE, why)


def exit_code(rows: Sequence[Row]) -> int:
    """1 after any failure, and where nothing at all was checked."""
    outcomes = {row.outcome for row in rows}
    return int(Outcome.FAILED in outcomes or Outcome.OK not in outcomes)


def table(rows: Sequence[Row]) -> str:
    """Columns as wide as their contents, and how many rows have which outcome."""
    lines = [("check", "figure", "target", "outcome")]
    lines += [(row.name, row.figure, row.target, _told(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:3]
    text = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[3]])
        for line in lines
    ]
    counts = [f"{sum(row.outcome is o for row in rows)} {o}" for o in Outcome]
    return "\n".join([*text, "", ", ".join(counts)])


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _told(row: Row) -> str:
    return f"{row.outcome}: {row.why}" if row.why else row.outcome.value
