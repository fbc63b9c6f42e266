# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the demo prints."""

from __future__ import annotations


def assert_all_right(output: str) -> None:
    """Four right answers, both large pictures token-exact, and no failure."""
    lines = [line.strip() for line in output.splitlines()]
    assert len([line for line in lines if line.endswith("-> right")]) == 4, output
    assert len([line for line in lines if line.endswith(": the answer is right")]) == 4
    assert len([line for line in lines if line.endswith("token ids equal transformers'")]) == 2
    assert "FAILED" not in output
