# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How far a transfer is, for those who look at a worker's status."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Grants so far; tokens written, or copied out, so far and in all; seconds since its begin.

    `total_tokens` is None until the length is known.
    """

    rounds: int
    tokens: int
    total_tokens: int | None
    age_s: float
