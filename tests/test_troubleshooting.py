# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""docs/troubleshooting.md: every line that it quotes is one that the code can write.

`…` in the document stands for what a line fills in. What the document does spell out must be a text
of the code as well, or a value of a word or two.
"""

from __future__ import annotations

import re

import pytest

from dynamo.sglang_mm_resume.args import BadArgument, parse_settings
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.layout import Layout
from tests.support.log_lines import (
    TROUBLESHOOTING,
    Wording,
    can_be_written,
    quoted_lines,
    wordings,
)

#: Alerts link to these.
HEADINGS = (
    "Resume rate too high",
    "Memory too high",
    "Waiting for buffers",
    "Transfer failures",
    "Version mismatch",
    "TCP fall-back",
    "Out of memory at start-up",
)
QUOTED = quoted_lines(TROUBLESHOOTING)


@pytest.fixture(scope="module")
def said() -> frozenset[Wording]:
    return wordings()


def test_alerts_find_their_headings() -> None:
    headings = re.findall(r"^## (.+)$", TROUBLESHOOTING.read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == list(HEADINGS)


def test_enough_lines_are_quoted() -> None:
    assert len(QUOTED) > 30


@pytest.mark.parametrize("line", QUOTED)
def test_a_line_is_one_of_the_code(line: str, said: frozenset[Wording]) -> None:
    assert can_be_written(line, said)


@pytest.mark.parametrize(
    "line",
    [
        "encode worker … failed a test: …",
        "refused (timeout): no block became free within … minutes of waiting for it",
        "request …: the answer of prefill worker … was ended too early",
        "waiting for an elephant in the room",
        "…",
    ],
)
def test_a_line_of_no_code_is_found(line: str, said: frozenset[Wording]) -> None:
    assert not can_be_written(line, said)


@pytest.mark.parametrize("buffers", [2**25, 2**50], ids=["a PiB", "beyond all addresses"])
def test_a_pool_that_does_not_fit_says_what_the_document_quotes(buffers: int) -> None:
    from dynamo.sglang_mm_resume.workers.pool import make_pool

    layout = Layout(model="any", width=16384, dtype="bfloat16", block_size=128)
    with pytest.raises(BadArgument) as refused:
        make_pool(Settings(pool_buffers=buffers), layout, None)
    assert _is_quoted(str(refused.value))


def test_a_slot_of_unknown_size_says_what_the_document_quotes() -> None:
    from dynamo.sglang_mm_resume.workers.pool import make_pool

    settings, _ = parse_settings(["--no-use-block-allocator"])
    layout = Layout(model="any", width=8, dtype="bfloat16", block_size=settings.block_size)
    with pytest.raises(BadArgument) as refused:
        make_pool(settings, layout, None)
    assert _is_quoted(str(refused.value))


def _is_quoted(text: str) -> bool:
    """Whether a real line is one that the document quotes."""
    return any(Wording.of_document(line).matches(text) for line in QUOTED)
