# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How tokens map to blocks and bytes, and what two peers must agree on before they exchange any.

R2: token `t` of a chunk lies in row `t % block_size` of block `block_indices[t // block_size]`.
"""

from hashlib import sha256
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from dynamo.sglang_mm_resume.core.errors import Reason, Refused

#: Raised whenever a message or the meaning of a field changes.
PROTOCOL_VERSION: Final = 3

#: What is understood: this version, and the one before, so that a graph can be updated in service.
SPOKEN: Final = (PROTOCOL_VERSION - 1, PROTOCOL_VERSION)

#: Blocks of one chunk, at most (R8): a posted write cannot be called back, so posts stay small.
MAX_CHUNK_BLOCKS: Final = 16

#: Bytes per element of every dtype that may travel (R11: unchanged, never cast).
ITEM_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


class Layout(BaseModel):
    """The facts that fix every byte of a pool: equal on both sides or no transfer (R10).

    `width` counts the elements of one token's row; deepstack levels are part of it.
    `block_size` is in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol_version: int = PROTOCOL_VERSION
    model: str = Field(min_length=1)
    width: int = Field(gt=0)
    dtype: str = Field(pattern="^(float32|bfloat16|float16)$")
    block_size: int = Field(gt=0)

    @property
    def token_bytes(self) -> int:
        return self.width * ITEM_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        return self.block_size * self.token_bytes

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all fields: short enough for a log line."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens need; the last may be partly filled."""
        return blocks_for(num_tokens, self.block_size)

    def spoken_in(self, version: int) -> "Layout":
        """The same, as a worker of that protocol version has it."""
        return self.model_copy(update={"protocol_version": version})

    def require_same(self, peer: "Layout", peer_name: str) -> None:
        """Raise `Refused` naming both values of every field that differs (R10)."""
        ours, theirs = self.model_dump(), peer.model_dump()
        different = [name for name in ours if ours[name] != theirs[name]]
        if not different:
            return
        named = ", ".join(f"{n} is {ours[n]!r} here and {theirs[n]!r} there" for n in different)
        reason = Reason.VERSION if "protocol_version" in different else Reason.LAYOUT
        raise Refused(reason, f"{peer_name} does not fit this worker: {named}")


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks of `block_size` tokens that `num_tokens` tokens need."""
    return -(-num_tokens // block_size)
