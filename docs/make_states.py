# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The state diagrams of docs/protocol.md, from the tables that the code runs on.

python docs/make_states.py            print them
python docs/make_states.py --write    put them into docs/protocol.md
"""

import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from sections import main

from dynamo.sglang_mm_resume.core.transitions import (
    RECEIVING,
    SENDING,
    SHAKING,
    Receiving,
    Sending,
    Shaking,
)

DOCUMENT = Path(__file__).with_name("protocol.md")

Table = Mapping[tuple[Any, Any], Any]


def diagrams() -> str:
    """All three, each under its heading."""
    parts: list[tuple[str, Table, type[Enum]]] = [
        ("Prefill worker: `Receiving`", RECEIVING, Receiving),
        ("Encode worker: `Sending`", SENDING, Sending),
        ("Processor: `Shaking`", SHAKING, Shaking),
    ]
    return "\n\n".join(
        f"### {title}\n\n```mermaid\n{diagram(table, states)}\n```"
        for title, table, states in parts
    )


def diagram(table: Table, states: type[Enum]) -> str:
    """One table as a mermaid state diagram.

    A transfer begins in the first state of the enumeration and ends in those without a way out.
    """
    events: dict[tuple[Any, Any], list[str]] = {}
    for (before, event), after in table.items():
        events.setdefault((before, after), []).append(event.value)
    leaving = {before for before, _ in events}
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(states)).value}"]
    lines += [
        f"    {before.value} --> {after.value}: {', '.join(names)}"
        for (before, after), names in events.items()
    ]
    lines += [f"    {state.value} --> [*]" for state in states if state not in leaving]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "states", diagrams()))
