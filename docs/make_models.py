# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/models.md, from the families that workers serve or refuse.

python docs/make_models.py            print them
python docs/make_models.py --write    put them into docs/models.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sections import main_of

from dynamo.sglang_mm_resume.workers.families import REFUSED, SERVED

DOCUMENT = Path(__file__).parent / "models.md"
#: Where each is tested, over HTTP and token by token, by the name of the family.
TESTS = {
    "Qwen2-VL": ("integration/test_families.py",),
    "Qwen2.5-VL": ("integration/test_token_exact.py", "faults/test_encode_fallback.py"),
    "Qwen3-VL": ("integration/test_video.py",),
    "Qwen3-VL-MoE": ("integration/test_families.py",),
}


def served() -> str:
    rows = [
        (family.name, f"`{family.architecture}`", _tests(family.name), family.note)
        for family in SERVED
    ]
    return _table(("family", "architecture", "tested by", ""), rows)


def refused() -> str:
    rows = [(family.name, f"`{family.architecture}`", family.why_not) for family in REFUSED]
    return _table(("family", "architecture", "why"), rows)


def _tests(name: str) -> str:
    return ", ".join(f"[{Path(path).name}](../tests/{path})" for path in TESTS[name])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main_of(DOCUMENT, {"served": served(), "refused": refused()}))
