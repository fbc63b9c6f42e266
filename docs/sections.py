# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of the documents that a script generates, between two markers.

A script that calls `main` prints its sections, `--write` puts them into the document, and `--check`
fails where the document has another text.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def main(document: Path, name: str, text: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a script that generates one section; returns its exit code."""
    return main_of(document, {name: text}, argv)


def main_of(document: Path, sections: Mapping[str, str], argv: Sequence[str] | None = None) -> int:
    """The same for several sections of one document: their texts by their names."""
    names = ", ".join(f"'{name}'" for name in sections)
    parser = argparse.ArgumentParser(description=f"Generate the section {names} of {document}.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="replace the section in the document")
    mode.add_argument("--check", action="store_true", help="fail if the section is stale")
    arguments = parser.parse_args(argv)
    if not (arguments.write or arguments.check):
        print("\n\n".join(sections.values()))
        return 0
    old = new = document.read_text(encoding="utf-8")
    for name, text in sections.items():
        new = replaced(new, name, text)
    if arguments.write:
        document.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{document}: the section {names} is stale: run with --write", file=sys.stderr)
        return 1
    return 0


def replaced(document: str, name: str, text: str) -> str:
    """The text of `document` with `text` as its section `name`.

    Raises ValueError unless the document has both markers of the section exactly once.
    """
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    parts = re.split(f"({re.escape(begin)}|{re.escape(end)})", document)
    if parts[1::2] != [begin, end]:
        raise ValueError(f"expected {begin} and then {end}, each once")
    return "".join([parts[0], begin, "\n\n", text.strip(), "\n\n", end, parts[4]])
