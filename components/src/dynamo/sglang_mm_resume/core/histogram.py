# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How often something was how large: what a status shows, and metrics.py hands to Prometheus.

Not `prometheus_client.Histogram`: SGLang may make that library keep its values in files that all
processes of an engine share, and figures of a worker are to be seen in its status as well.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

#: From half a millisecond to a minute. 0.01 is the objective for a wait for blocks.
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
#: Lengths of embeddings, and what a block, a default grant and a pool hold.
TOKENS = tuple(float(2**n) for n in range(4, 18))
#: Rounds of a transfer, pictures of a batch: one is the rule.
FEW = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
#: From a slow network to memory: 10 MB/s to 500 GB/s.
BYTES_PER_SECOND = tuple(digit * 10.0**n for n in range(7, 12) for digit in (1, 2.5, 5))


@dataclass(slots=True)
class Histogram:
    """Values counted by size. `bounds` ascend and belong to what is below them.

    `counts` has one entry more than `bounds`, for what exceeds all; they do not accumulate.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
