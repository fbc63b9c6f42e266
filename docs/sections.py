# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Sections of the documents that a script generates, between two markers.

A script that calls `main` prints its section, `--write` puts it into the document, and `--check`
fails where the document has another text.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path


def main(document: Path, name: str, text: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a generating script; returns its exit code."""
    parser = argparse.ArgumentParser(description=f"Generate the section '{name}' of {document}.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="replace the section in the document")
    mode.add_argument("--check", action="store_true", help="fail if the section is stale")
    arguments = parser.parse_args(argv)
    if not (arguments.write or arguments.check):
        print(text)
        return 0
    old = document.read_text(encoding="utf-8")
    new = replaced(old, name, text)
    if arguments.write:
        document.write_text(new, encoding="utf-8")
    elif new != old:
        print(f"{document}: the section '{name}' is stale: run with --write", file=sys.stderr)
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
