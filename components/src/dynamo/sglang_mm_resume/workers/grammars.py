# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Bounds on the schemas, expressions and grammars that a request binds its answer to.

An engine compiles them beside its work, and asks them between every two tokens of all of its
requests which tokens they allow. Both may take minutes for a text of a few characters, in which the
answers of all others stand still. These bounds refuse what was measured to do so, and what nobody
writes by hand; docs/failure-model.md says what they cannot see.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dynamo.sglang_mm_resume.core.errors import Reason, Refused

#: Characters of the constraint as JSON. At this size xgrammar compiles an enum in about 1 s.
MAX_CHARACTERS: Final = 65_536
#: Objects and lists within each other. At 64 xgrammar compiles in 0.05 s, at 500 in 10 s.
MAX_DEPTH: Final = 64
#: In how many ways nested repetitions may share a text. At 200 a token takes about 20 ms.
MAX_WAYS: Final = 200
#: Repetitions in one expression. With 256 of `a?` xgrammar takes 20 ms a token, with 3,000 3 s.
MAX_REPETITIONS: Final = 256
#: What a repetition without an upper limit counts as, among them.
_UNLIMITED: Final = 10

#: Where a schema or a structural tag has regular expressions: as a value, and as names of a value.
_PATTERN: Final = "pattern"
_PATTERNS: Final = "patternProperties"

_PIECE: Final = re.compile(
    r"(?P<atom>\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^()|*+?{\\\[])"
    r"|(?P<open>\((?:\?(?:[:=!]|<[=!]|P?<[^>]*>))?)"
    r"|(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})\??"
    r"|(?P<other>.)",
    re.DOTALL,
)


def require_bounded(request: dict[str, Any]) -> None:
    """Raises `Refused`, which names the bound, for a constraint beyond one."""
    guided = (request.get("sampling_options") or {}).get("guided_decoding") or {}
    for kind in ("json", "structural_tag", "regex", "choice", "grammar"):
        constraint = guided.get(kind)
        if constraint is not None:
            _require_bounded(kind, constraint)


def _require_bounded(kind: str, constraint: Any) -> None:
    depth = _depth_of(constraint)
    if depth > MAX_DEPTH:
        raise _beyond(kind, f"has {depth} levels of objects and lists", f"{MAX_DEPTH} levels")
    length = len(constraint if isinstance(constraint, str) else json.dumps(constraint))
    if length > MAX_CHARACTERS:
        raise _beyond(kind, f"has {length} characters", f"{MAX_CHARACTERS} characters")
    patterns = [constraint] if kind == "regex" else _patterns_in(constraint)
    for pattern in patterns:
        if not isinstance(pattern, str):
            continue
        repetitions = sum(piece.lastgroup == "repeat" for piece in _PIECE.finditer(pattern))
        if repetitions > MAX_REPETITIONS:
            bound = f"{MAX_REPETITIONS} of them"
            raise _beyond(kind, f"has {repetitions} repetitions in one expression", bound)
        ways = ways_of(pattern)
        if ways > MAX_WAYS:
            raise _beyond(
                kind,
                f"has repetitions within repetitions that share a text in {ways} ways",
                f"{MAX_WAYS} ways; put a character that is always there between them",
            )


def _beyond(kind: str, what: str, bound: str) -> Refused:
    return Refused(
        Reason.BAD_REQUEST,
        f"what guides the answer (guided decoding by {kind}) {what}: at most {bound}",
    )


def _depth_of(value: Any) -> int:
    """Of nested objects and lists; counts no further than just beyond the bound."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        level = [item for outer in level if _is_nested(outer) for item in [outer]]
        if not level:
            break
        depth += 1
        level = [inner for outer in level for inner in _within(outer)]
    return depth


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _patterns_in(value: Any) -> Iterator[Any]:
    """Regular expressions anywhere in a schema or a structural tag."""
    todo = [value]
    while todo:
        current = todo.pop()
        todo.extend(_within(current))
        if isinstance(current, dict):
            yield current.get(_PATTERN)
            names = current.get(_PATTERNS)
            yield from names if isinstance(names, dict) else ()


@dataclass(slots=True)
class _Part:
    """A part of an expression: a character, a group, or several in a row."""

    fixed: bool = False
    """Whether it has a character that is always there, once for each time it is repeated."""
    span: int = 1
    """How many lengths its own repetition may have."""
    ways: int = 1
    """In how many ways the repetitions within it may share a text."""

    def followed_by(self, other: _Part) -> _Part:
        fixed = self.fixed or other.fixed
        return _Part(fixed, max(self.span, other.span), max(self.ways, other.ways))

    def or_else(self, other: _Part) -> _Part:
        fixed = self.fixed and other.fixed
        return _Part(fixed, max(self.span, other.span), max(self.ways, other.ways))

    def repeated(self, least: int, most: int) -> _Part:
        span = most if least == most and not self.fixed else most - least + 1
        if self.fixed:  # each time begins at a place of its own
            return _Part(least == most > 0, span, self.ways)
        return _Part(False, span, max(self.ways, self.span) * span)


def ways_of(expression: str) -> int:
    """In how many ways, at the most, its nested repetitions may share one text.

    An estimate: it does not look at which characters may stand where.
    """
    row, alternatives, last = _Part(), None, None
    outer: list[tuple[_Part, _Part | None]] = []
    for piece in _PIECE.finditer(expression):
        kind, text = piece.lastgroup, piece.group()
        if kind == "repeat":
            last = last and last.repeated(*_limits(piece.group("repeat")))
            continue
        if last is not None:
            row, last = row.followed_by(last), None
        if kind == "open":
            outer.append((row, alternatives))
            row, alternatives = _Part(), None
        elif text == ")" and outer:
            last = alternatives.or_else(row) if alternatives else row
            row, alternatives = outer.pop()
        elif text == "|":
            alternatives = alternatives.or_else(row) if alternatives else row
            row = _Part()
        else:
            last = _Part(fixed=True)
    whole = [part for part in (last, row, alternatives) if part is not None]
    return max(part.ways for part in [*whole, *(p for pair in outer for p in pair if p)])


def _limits(repeat: str) -> tuple[int, int]:
    """Least and most of a repetition."""
    least, comma, most = repeat.strip("{}").partition(",")
    if repeat in ("*", "+", "?"):
        return {"*": (0, _UNLIMITED), "+": (1, _UNLIMITED), "?": (0, 1)}[repeat]
    if not comma:
        return int(least), int(least)
    return int(least), int(most) if most else int(least) + _UNLIMITED
