# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The texts that the code can write, and whether a line that a document quotes is among them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "components" / "src" / "dynamo" / "sglang_mm_resume"
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"

#: What stands for a value in a document.
BLANK = "…"
#: Letters that a text must have in itself to say anything.
MIN_LETTERS = 6
_PERCENT = re.compile(r"%[-#0 +]*[\d.]*[sdfgr]")
_LOGS = {"debug", "info", "warning", "error", "exception"}


@dataclass(frozen=True)
class Wording:
    """A text with blanks: the literal parts between them."""

    parts: tuple[str, ...]

    @classmethod
    def of_document(cls, line: str) -> Wording:
        return cls(tuple(line.split(BLANK)))

    @property
    def letters(self) -> int:
        return sum(character.isalpha() for part in self.parts for character in part)

    def matches(self, line: str) -> bool:
        """Whether `line` is this text with its blanks filled in."""
        return next(self.fillings(line), None) is not None

    def is_in(self, line: str) -> bool:
        """Whether a line of a log has this text, behind its time and place."""
        return re.search(".+".join(map(re.escape, self.parts)), line) is not None

    def fillings(self, line: str) -> Iterator[tuple[str, ...]]:
        """Every way to fill the blanks, with something each, so that `line` comes out."""
        if line.startswith(self.parts[0]):
            yield from _fillings(line[len(self.parts[0]) :], self.parts[1:])


def _fillings(rest: str, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not parts:
        if not rest:
            yield ()
        return
    part, *further = parts
    at = len(rest) if not part and not further else rest.find(part, 1)
    while 0 < at <= len(rest):
        for filling in _fillings(rest[at + len(part) :], tuple(further)):
            yield (rest[:at], *filling)
        at = rest.find(part, at + 1) if part else at + 1


def quoted_lines(document: Path) -> list[str]:
    """The log lines of a document, in order: between quotation marks, as code."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(re.findall(r'`"([^`]+)"`', text)))


def wordings() -> frozenset[Wording]:
    """Every text of the package: log lines, errors, and what these are put together from."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        logged = {id(format_) for format_ in _log_formats(tree)}
        for node in ast.walk(tree):
            text = _text_of(node, is_format=id(node) in logged)
            if text is not None:
                found.add(Wording.of_document(text))
    return frozenset(found)


def can_be_written(line: str, said: frozenset[Wording]) -> bool:
    """Whether `line` is a text of the code, and so is whatever fills its blanks."""
    return any(
        all(_is_value(filling) or can_be_written(_bare(filling), said) for filling in fillings)
        for wording in said
        if wording.letters >= MIN_LETTERS
        for fillings in wording.fillings(line)
    )


def _is_value(filling: str) -> bool:
    """A blank, a number, a name: no text of its own."""
    return len(filling.split()) <= 2


def _bare(filling: str) -> str:
    """Without the punctuation that joins it to what is before it."""
    return filling.lstrip(":, ")


def _log_formats(tree: ast.AST) -> Iterator[ast.expr]:
    """The first argument of each log call."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _LOGS
            and node.args
        ):
            yield node.args[0]


def _text_of(node: ast.AST, is_format: bool) -> str | None:
    """A string of the code, with `…` for what is filled in; neighbours count as one."""
    match node:
        case ast.Constant(value=str(text)):
            text = _PERCENT.sub(BLANK, text) if is_format else text
        case ast.JoinedStr(values=values):
            text = "".join(
                value.value if isinstance(value, ast.Constant) else BLANK for value in values
            )
        case _:
            return None
    return re.sub(f"{BLANK}+", BLANK, text)
