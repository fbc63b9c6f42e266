# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/sender.py`: which chunk is posted next, and when posting stops."""

from typing import Any

import pytest

from dynamo.sglang_mm_resume.core.errors import IllegalEvent, ProtocolError, TransferFailed
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from dynamo.sglang_mm_resume.core.messages import Chunk, Grant
from dynamo.sglang_mm_resume.core.sender import Sender
from dynamo.sglang_mm_resume.core.transitions import Sending

START = 100.0
VALID_S = 30.0


def a_grant(**fields: Any) -> Grant:
    """Two blocks of four tokens, one block per chunk."""
    defaults: dict[str, Any] = {
        "transfer_id": "transfer-1",
        "generation": 0,
        "first_token": 0,
        "blocks": (5, 2),
        "block_size": 4,
        "chunk_blocks": 1,
        "valid_s": VALID_S,
    }
    return Grant(**defaults | fields)


def a_sender(total_tokens: int | None = None, **fields: Any) -> Sender:
    sender = Sender(a_grant(**fields), num_receiver_blocks=8, now=START)
    if total_tokens is not None:
        sender.encoded(total_tokens)
    return sender


def post(sender: Sender, now: float = START) -> Chunk:
    chunk = sender.next_chunk(now)
    assert chunk is not None
    return chunk


def write_all(sender: Sender) -> list[tuple[Chunk, bool]]:
    written = []
    while (chunk := sender.next_chunk(START)) is not None:
        written.append((chunk, sender.written(chunk)))
    return written


def test_nothing_is_posted_before_the_embedding_exists() -> None:
    assert a_sender().next_chunk(START) is None


def test_chunks_leave_in_order_and_the_last_of_a_grant_is_told() -> None:
    sender = a_sender(total_tokens=7)
    written = write_all(sender)
    assert [(c.index, c.first_token, c.num_tokens, c.blocks, last) for c, last in written] == [
        (0, 0, 4, (5,), False),
        (1, 4, 3, (2,), True),
    ]
    assert sender.state is Sending.DONE


def test_the_notice_says_what_the_chunk_is() -> None:
    sender = a_sender(total_tokens=7)
    post(sender)
    notice = sender.notice(post(sender), checksum=2**32 - 1)
    assert notice.model_dump(exclude={"v", "op"}) == {
        "transfer_id": "transfer-1",
        "generation": 0,
        "chunk": 1,
        "first_token": 4,
        "num_tokens": 3,
        "total_tokens": 7,
        "checksum": 2**32 - 1,
    }


@pytest.mark.parametrize(
    ("receiver", "spoken"),
    [(PROTOCOL_VERSION - 1, PROTOCOL_VERSION - 1), (PROTOCOL_VERSION + 1, PROTOCOL_VERSION)],
    ids=["older", "newer"],
)
def test_a_notice_is_in_the_version_of_its_receiver(receiver: int, spoken: int) -> None:
    sender = a_sender(total_tokens=7, v=receiver)
    assert sender.notice(post(sender)).v == spoken


def test_no_notice_before_the_length_is_known() -> None:
    sender = a_sender()
    chunk = Chunk(generation=0, index=0, first_token=0, num_tokens=1, blocks=(5,))
    with pytest.raises(ProtocolError):
        sender.notice(chunk)


def test_a_sender_starves_until_a_grant_continues_it() -> None:
    sender = a_sender(total_tokens=9)
    write_all(sender)
    assert sender.state is Sending.STARVED
    assert sender.next_chunk(START) is None
    sender.add_grant(a_grant(generation=7, first_token=8, blocks=(1,)), START)
    ((chunk, last),) = write_all(sender)
    assert (chunk.generation, chunk.first_token, chunk.num_tokens, last) == (7, 8, 1, True)
    assert sender.state is Sending.DONE


def test_a_grant_may_arrive_while_the_tower_runs() -> None:
    sender = a_sender()
    sender.add_grant(a_grant(generation=1, first_token=8, blocks=(1,)), START)
    sender.encoded(9)
    assert [last for _, last in write_all(sender)] == [False, True, True]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"transfer_id": "transfer-2"}, "transfer-2 handed to transfer-1"),
        ({"generation": 0}, "generation 0 is not new"),
        ({"first_token": 7}, "starts at token 7, expected 8"),
        ({"first_token": 9}, "starts at token 9, expected 8"),
        ({"blocks": (1, 1)}, "names a block twice"),
        ({"blocks": (1, 8)}, "block 8 of a pool of 8"),
    ],
)
def test_a_grant_that_does_not_continue_the_last_is_refused(
    wrong: dict[str, Any], text: str
) -> None:
    sender = a_sender(total_tokens=20)
    with pytest.raises(ProtocolError, match=text):
        sender.add_grant(a_grant(**{"generation": 1, "first_token": 8} | wrong), START)
    assert len(write_all(sender)) == 2, "the refused grant left no trace"


def test_a_default_grant_is_checked_too() -> None:
    with pytest.raises(ProtocolError, match="names a block twice"):
        a_sender(blocks=(1, 1))


def test_an_expired_grant_never_yields_a_chunk() -> None:
    """R8: by our own clock, checked before each post."""
    sender = a_sender(total_tokens=7)
    sender.written(post(sender, START + VALID_S))
    with pytest.raises(TransferFailed, match=r"grant 0 expired 0\.5 s before"):
        sender.next_chunk(START + VALID_S + 0.5)


def test_every_grant_has_its_own_expiry() -> None:
    sender = a_sender(total_tokens=12)
    write_all(sender)
    later = START + 5 * VALID_S
    sender.add_grant(a_grant(generation=1, first_token=8, blocks=(1,)), later)
    assert post(sender, later + VALID_S).generation == 1


def test_closing_an_idle_sender_is_immediate_and_may_be_repeated() -> None:
    for sender in (a_sender(), a_sender(total_tokens=7)):
        sender.close()
        sender.close()
        assert sender.state is Sending.CLOSED
        assert sender.next_chunk(START) is None


@pytest.mark.parametrize("well", [True, False])
def test_closing_waits_for_the_write_in_flight_and_posts_no_more(well: bool) -> None:
    """R6: CLOSED is what the receiver may rely on, so it comes after the last write."""
    sender = a_sender(total_tokens=7)
    chunk = post(sender)
    sender.close()
    assert sender.state is Sending.CLOSING
    assert sender.next_chunk(START) is None
    if well:
        sender.written(chunk)
    else:
        sender.write_failed()
    assert sender.state is Sending.CLOSED


def test_a_closed_sender_takes_no_grant() -> None:
    sender = a_sender(total_tokens=20)
    sender.close()
    with pytest.raises(IllegalEvent):
        sender.add_grant(a_grant(generation=1, first_token=8), START)


def test_a_finished_sender_takes_no_grant() -> None:
    sender = a_sender(total_tokens=8)
    write_all(sender)
    with pytest.raises(ProtocolError, match="behind the last"):
        sender.add_grant(a_grant(generation=1, first_token=8), START)
