# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The settings table of README.md, from the settings that the workers read.

python docs/make_settings.py            print it
python docs/make_settings.py --write    put it into README.md
"""

import sys
from pathlib import Path
from typing import Any

from sections import main

from dynamo.sglang_mm_resume.args import BOOTSTRAP_ADDR_ENV, DEFAULT_TOKENS
from dynamo.sglang_mm_resume.config import Settings, SettingSpec, spec_of
from dynamo.sglang_mm_resume.workers.role import MODE_ENV, ROLES

DOCUMENT = Path(__file__).parents[1] / "README.md"
NOTHING = "-"


def table() -> str:
    """One row per setting, in the order of `--help`."""
    rows: list[tuple[str, ...]] = [
        ("environment", "flag", "unit", "default", "meaning"),
        ("---", "---", "---", "---", "---"),
        (
            _code(MODE_ENV),
            _code("--role"),
            "encode or language",
            NOTHING,
            "The worker that `python -m dynamo.sglang_mm_resume` starts; `language` is the prefill "
            f"worker. The flag wins, and takes {_roles()}.",
        ),
        (
            _code(BOOTSTRAP_ADDR_ENV),
            NOTHING,
            "address",
            NOTHING,
            "Accepted and not used: Dynamo's discovery replaces the bootstrap server. "
            "A line in the log says so.",
        ),
    ]
    for name, field in Settings.model_fields.items():
        rows.append(_row(spec_of(name), field.default))
        if name == "default_blocks":
            rows.append(_row(DEFAULT_TOKENS, Settings().default_tokens))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(spec: SettingSpec, default: Any) -> tuple[str, ...]:
    flags = _code(spec.flag)
    if isinstance(default, bool):
        flags += ", " + _code(spec.flag.replace("--", "--no-", 1))
    unit = spec.unit if spec.maximum is None else f"{spec.unit}, at most {spec.maximum}"
    return (_code(spec.env), flags, unit, _default(default), spec.text)


def _default(value: Any) -> str:
    match value:
        case None:
            return NOTHING
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _roles() -> str:
    *others, last = (_code(role) for role in ROLES)
    return f"{', '.join(others)} or {last}"


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    sys.exit(main(DOCUMENT, "settings", table()))
