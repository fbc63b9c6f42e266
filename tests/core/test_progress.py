# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How far a transfer is, as each side of it tells."""

from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.messages import ChunkNotice, Grant, Reserve, chunks_of
from dynamo.sglang_mm_resume.core.progress import Progress
from dynamo.sglang_mm_resume.core.receiver import GrantMade, Receiver, ReceiverLimits
from dynamo.sglang_mm_resume.core.sender import Sender

NAME = "transfer-a"
TOTAL_TOKENS = 10  # the default grant holds eight


def a_receiver() -> Receiver:
    """Blocks of four tokens, one block per chunk."""
    limits = ReceiverLimits(
        wait_timeout_s=30.0,
        max_waiting=10,
        max_assembled_tokens=1000,
        chunk_blocks=1,
        resumable=True,
        settle_interval_s=1.0,
        max_quarantined_blocks=4,
    )
    return Receiver(BlockPool(4, 4, 2), limits)


def granted(receiver: Receiver, now: float) -> Grant:
    """A transfer's default grant."""
    effects = receiver.reserve(Reserve(transfer_id=NAME, writer_instance_id=7), now)
    (grant,) = [effect.grant for effect in effects if isinstance(effect, GrantMade)]
    receiver.answered(NAME)
    return grant


def test_a_receiver_counts_grants_and_rows_that_are_out() -> None:
    receiver = a_receiver()
    grant = granted(receiver, now=1.0)
    assert receiver.progress(1.5) == {NAME: Progress(1, 0, None, 0.5)}
    chunk = chunks_of(grant, TOTAL_TOKENS)[0]
    notice = ChunkNotice(
        transfer_id=NAME,
        generation=chunk.generation,
        chunk=chunk.index,
        first_token=chunk.first_token,
        num_tokens=chunk.num_tokens,
        total_tokens=TOTAL_TOKENS,
    )
    receiver.landed(notice, 2.0)
    assert receiver.progress(2.0) == {NAME: Progress(1, 0, TOTAL_TOKENS, 1.0)}
    receiver.copied(NAME, chunk, 3.0)
    assert receiver.progress(3.0) == {NAME: Progress(1, 4, TOTAL_TOKENS, 2.0)}
    assert receiver.try_grant(NAME, TOTAL_TOKENS, 3.0) is not None
    assert receiver.progress(3.0) == {NAME: Progress(2, 4, TOTAL_TOKENS, 2.0)}


def test_a_sender_counts_grants_and_rows_that_are_written() -> None:
    receiver = a_receiver()
    grant = granted(receiver, now=1.0)
    sender = Sender(grant, num_receiver_blocks=4, now=1.0)
    sender.encoded(TOTAL_TOKENS)
    assert sender.progress(1.0) == Progress(1, 0, TOTAL_TOKENS, 0.0)
    chunk = sender.next_chunk(2.0)
    assert chunk is not None
    sender.written(chunk)
    assert sender.progress(3.0) == Progress(1, 4, TOTAL_TOKENS, 2.0)
    more = receiver.try_grant(NAME, TOTAL_TOKENS, 3.0)
    assert more is not None
    sender.add_grant(more, 3.0)
    assert sender.progress(3.0) == Progress(2, 4, TOTAL_TOKENS, 2.0)
