# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What checks find, as text for people and as JSON and an exit code for scripts."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

#: Raised when a field of the JSON object is renamed or removed, or means something else.
JSON_VERSION: Final = 1

_WIDTH: Final = 100
_NAME_WIDTH: Final = 24


class Outcome(StrEnum):
    """Ordered by gravity. `SKIP`: does not apply here, or cannot be examined from here."""

    OK = "ok"
    SKIP = "skip"
    WARN = "warn"
    FAIL = "fail"


EXIT_CODES: Final[Mapping[Outcome, int]] = {
    Outcome.OK: 0,
    Outcome.SKIP: 0,
    Outcome.WARN: 1,
    Outcome.FAIL: 2,
}
_GRAVITY: Final = list(Outcome)


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found. `figures` are plain JSON values; their names carry the unit.

    Raises ValueError for a warning or a failure that does not say what to do.
    """

    name: str
    outcome: Outcome
    text: str
    action: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.outcome in (Outcome.WARN, Outcome.FAIL) and not self.action:
            raise ValueError(f"check {self.name}: nothing is said about what to do")


def ok(name: str, text: str, **figures: Any) -> Result:
    """All is well."""
    return Result(name, Outcome.OK, text, figures=figures)


def skip(name: str, text: str, **figures: Any) -> Result:
    """Nothing can be said here, and nothing has to be done."""
    return Result(name, Outcome.SKIP, text, figures=figures)


def warn(name: str, text: str, action: str, **figures: Any) -> Result:
    """It works, and not as well as it could."""
    return Result(name, Outcome.WARN, text, action, figures)


def fail(name: str, text: str, action: str, **figures: Any) -> Result:
    """It does not work."""
    return Result(name, Outcome.FAIL, text, action, figures)


@dataclass(frozen=True, slots=True)
class Section:
    """Checks that belong together."""

    title: str
    results: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    sections: Sequence[Section]

    @property
    def results(self) -> list[Result]:
        return [result for section in self.sections for result in section.results]

    @property
    def outcome(self) -> Outcome:
        """The gravest of all."""
        return max((r.outcome for r in self.results), key=_GRAVITY.index, default=Outcome.OK)

    @property
    def exit_code(self) -> int:
        """0: nothing to do; 1: warnings; 2: failures."""
        return EXIT_CODES[self.outcome]

    def as_json(self) -> str:
        """One object (docs/doctor.md)."""
        return json.dumps(
            {
                "version": JSON_VERSION,
                "outcome": "ok" if self.exit_code == 0 else self.outcome.value,
                "exit_code": self.exit_code,
                "checks": [
                    {
                        "section": section.title,
                        "name": result.name,
                        "outcome": result.outcome.value,
                        "text": result.text,
                        "action": result.action,
                        "figures": dict(result.figures),
                    }
                    for section in self.sections
                    for result in section.results
                ],
            }
        )

    def as_text(self) -> str:
        """A line per check, under what to do about it where something is to be done."""
        lines: list[str] = []
        for section in self.sections:
            lines += [section.title, *(line for r in section.results for line in _lines(r)), ""]
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        counts = Counter(result.outcome for result in self.results)
        words = [f"{counts[outcome]} {outcome.value}" for outcome in Outcome if counts[outcome]]
        return f"{len(self.results)} checks: {', '.join(words)}"


def _lines(result: Result) -> Iterable[str]:
    head = f"  {result.outcome.value:<5} {result.name:<{_NAME_WIDTH}} "
    yield from textwrap.wrap(
        result.text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    )
    if result.action:
        indent = " " * len(f"  {'':<5} ")
        yield from textwrap.wrap(
            result.action, _WIDTH, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   "
        )
