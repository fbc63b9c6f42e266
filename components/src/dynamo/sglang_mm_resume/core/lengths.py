# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How long embeddings were of late, so that a default grant can follow them."""

import math
from collections import deque
from typing import Final

#: Embeddings that are looked back on: enough for a quantile, few enough to follow the traffic.
WINDOW: Final = 128
#: Fewer say nothing yet.
ENOUGH: Final = 16
#: So many of them fit the default grant: a resume rate below 25 %, with few blocks left empty.
QUANTILE: Final = 0.75


class RecentLengths:
    """The last `WINDOW` lengths, in tokens."""

    def __init__(self) -> None:
        self._tokens: deque[int] = deque(maxlen=WINDOW)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, num_tokens: int) -> None:
        self._tokens.append(num_tokens)

    @property
    def longest(self) -> int | None:
        """The greatest of them; `None` before there is one."""
        return max(self._tokens, default=None)

    @property
    def usual(self) -> int | None:
        """The length that three of four do not exceed; `None` before there are `ENOUGH`."""
        if len(self._tokens) < ENOUGH:
            return None
        return sorted(self._tokens)[math.ceil(QUANTILE * len(self._tokens)) - 1]
