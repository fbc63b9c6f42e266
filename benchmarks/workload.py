# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is handed over, and what is learned from it: plain data that crosses processes."""

from dataclasses import dataclass, field, replace
from typing import Final

from dynamo.sglang_mm_resume.config import Settings

#: What workers start with; the device is chosen per run.
SETTINGS: Final = Settings()

HIDDEN: Final = 3584
ITEM_BYTES: Final = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contender is made ready for: bfloat16 embeddings, `(tokens, hidden)`, at most.

    `writers` hand over `in_flight` of them each, at the same time, every one of other content.
    `scratch`: a folder that all processes of a team share, if they need one. `device`: of the
    embeddings, and of the pools unless `pool_device` says otherwise.
    """

    tokens: int
    hidden: int = HIDDEN
    in_flight: int = 1
    writers: int = 1
    device: str = "cpu"
    scratch: str = ""
    pool_device: str = ""

    @property
    def embedding_bytes(self) -> int:
        return bytes_of(self.tokens, self.hidden)

    @property
    def writer_bytes(self) -> int:
        return self.in_flight * self.embedding_bytes


@dataclass(frozen=True, slots=True)
class PoolShape:
    """How our own pools are cut, in blocks; the same on both sides. Others ignore it.

    `ration`: no grant is larger, which forces rounds even where the pool has room.
    `size_first`: no grant before the embedding exists, then one for all of it.
    `adaptive`: default grants follow the lengths.
    `cached`: the embedding lies in the writer's pool since an earlier hand-off.
    """

    pool_blocks: int = SETTINGS.pool_blocks
    default_blocks: int = SETTINGS.default_blocks
    ration: int = SETTINGS.pool_blocks
    size_first: bool = False
    cached: bool = False
    adaptive: bool = False

    def of_exactly(self, num_blocks: int) -> "PoolShape":
        """With a first grant of `num_blocks`, as far as the pool goes."""
        return replace(self, default_blocks=min(num_blocks, self.pool_blocks))


@dataclass(frozen=True, slots=True)
class Order:
    """`count` hand-offs at once. The embeddings exist from `at` on (monotonic seconds)."""

    tokens: int
    count: int = 1
    shape: PoolShape = PoolShape()
    verify: bool = False
    at: float = 0.0


@dataclass(slots=True)
class HandOff:
    """One hand-off as its writer saw it. Times in seconds, on the clock all processes share."""

    key: str
    """Names it on the receiver's side."""
    ended: float
    seconds: dict[str, float]
    """Per series."""
    details: dict[str, list[float]] = field(default_factory=dict)
    """Parts of it, or further measures."""


def bytes_of(tokens: int, hidden: int) -> int:
    """Bytes of a bfloat16 embedding."""
    return tokens * hidden * ITEM_BYTES
