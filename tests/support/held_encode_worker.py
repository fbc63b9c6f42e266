# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The encode worker, which stands still at a moment while a test holds it (tests/support/holds.py).

python -m tests.support.held_encode_worker  # arguments as of the encode worker
"""

from __future__ import annotations

import asyncio
import time

import torch

from tests.support.holds import POLL_S, Moment, arrive, is_held

if __name__ == "__main__":
    from dynamo.sglang_mm_resume.core.messages import Chunk
    from dynamo.sglang_mm_resume.transport.staging import Source
    from dynamo.sglang_mm_resume.transport.writer import Outgoing, Writer
    from dynamo.sglang_mm_resume.workers.run import run, sglang_help
    from dynamo.sglang_mm_resume.workers.sglang_encoder import Prepared, VisionEncoder
    from dynamo.sglang_mm_resume.workers.start_encode import worker

    encode, write_chunk = VisionEncoder._encode, Writer.write_chunk

    def encode_when_let(self: VisionEncoder, batch: list[Prepared]) -> list[torch.Tensor]:
        """Runs in the tower's thread, as what it stands for cannot be interrupted either."""
        arrive(Moment.IN_THE_TOWER)
        while is_held(Moment.IN_THE_TOWER):
            time.sleep(POLL_S)
        return encode(self, batch)

    async def write_when_let(
        self: Writer, outgoing: Outgoing, source: Source, chunk: Chunk
    ) -> None:
        """The first chunk at once; a transfer that is given up does not wait."""
        if chunk.first_token:
            arrive(Moment.BETWEEN_ROUNDS)
            while is_held(Moment.BETWEEN_ROUNDS) and not outgoing.closed.is_set():
                await asyncio.sleep(POLL_S)
        await write_chunk(self, outgoing, source, chunk)

    VisionEncoder._encode = encode_when_let  # type: ignore[method-assign]
    Writer.write_chunk = write_when_let  # type: ignore[method-assign]
    run("encode_worker", worker, sglang_help)
