# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/handshake.py`: when the processor asks for more room, and how (R4)."""

import pytest

from dynamo.sglang_mm_resume.core.errors import IllegalEvent, ProtocolError, Reason, Refused
from dynamo.sglang_mm_resume.core.handshake import (
    Action,
    ForwardGrant,
    Handshake,
    TryGrant,
    WaitForGrant,
)
from dynamo.sglang_mm_resume.core.messages import Grant, Sent, Sized
from dynamo.sglang_mm_resume.core.transitions import Shaking


def a_grant(generation: int, first_token: int, blocks: int = 2, resumable: bool = True) -> Grant:
    """`blocks` blocks of four tokens."""
    return Grant(
        transfer_id="transfer-1",
        generation=generation,
        first_token=first_token,
        blocks=tuple(range(blocks)),
        block_size=4,
        chunk_blocks=16,
        valid_s=30.0,
        resumable=resumable,
    )


def sized(total_tokens: int) -> Sized:
    return Sized(total_tokens=total_tokens, grid=(1, 2, 2), content_hash="0" * 16)


def sent(generation: int, sent_tokens: int) -> Sent:
    return Sent(generation=generation, sent_tokens=sent_tokens, num_bytes=10)


def begun(total_tokens: int) -> tuple[Handshake, list[Action]]:
    """Eight tokens granted, then sized."""
    handshake = Handshake("transfer-1")
    assert handshake.granted(a_grant(0, 0)) == []
    return handshake, handshake.sized(sized(total_tokens))


@pytest.mark.parametrize("total_tokens", [1, 7, 8])
def test_what_fits_the_default_grant_needs_no_round(total_tokens: int) -> None:
    handshake, actions = begun(total_tokens)
    assert actions == []
    assert handshake.sent(sent(0, total_tokens)) == []
    assert (handshake.state, handshake.rounds, handshake.num_bytes) == (Shaking.DONE, 1, 10)


def test_more_is_tried_for_while_the_tower_runs() -> None:
    _, actions = begun(9)
    assert actions == [TryGrant(0)]


def test_a_grant_that_was_tried_for_is_forwarded_and_ends_the_asking() -> None:
    handshake, _ = begun(16)
    assert handshake.granted(a_grant(1, 8)) == [ForwardGrant(a_grant(1, 8))]
    assert handshake.sent(sent(0, 8)) == []
    assert handshake.sent(sent(1, 16)) == []
    assert handshake.state is Shaking.DONE


def test_one_grant_in_hand_beside_the_one_being_filled_is_enough() -> None:
    handshake, _ = begun(100)
    assert handshake.granted(a_grant(1, 8)) == [ForwardGrant(a_grant(1, 8))]
    assert handshake.sent(sent(0, 8)) == [TryGrant(8)]


def test_what_cannot_be_had_at_once_is_resumed_while_the_writer_fills_what_it_has() -> None:
    handshake, actions = begun(9)
    assert actions == [TryGrant(0)]
    assert handshake.no_blocks() == [WaitForGrant(8)]
    assert handshake.state is Shaking.RESUMING
    assert handshake.sent(sent(0, 8)) == []
    assert handshake.granted(a_grant(1, 8, blocks=1)) == [ForwardGrant(a_grant(1, 8, blocks=1))]
    assert handshake.sent(sent(1, 9)) == []
    assert (handshake.state, handshake.rounds, handshake.num_bytes) == (Shaking.DONE, 2, 20)


def test_nothing_is_asked_for_while_something_is() -> None:
    handshake, _ = begun(100)
    assert handshake.sent(sent(0, 8)) == []
    handshake.no_blocks()
    assert handshake.granted(a_grant(1, 8)) == [ForwardGrant(a_grant(1, 8)), TryGrant(8)]
    assert handshake.sent(sent(1, 16)) == []
    assert handshake.no_blocks() == [WaitForGrant(16)]


def test_no_blocks_answers_a_try_and_nothing_else() -> None:
    handshake, _ = begun(8)
    with pytest.raises(IllegalEvent):
        handshake.no_blocks()
    handshake, _ = begun(9)
    handshake.no_blocks()
    with pytest.raises(IllegalEvent):
        handshake.no_blocks()


def test_a_slot_that_is_too_small_refuses_and_says_what_to_change() -> None:
    handshake = Handshake("transfer-1")
    handshake.granted(a_grant(0, 0, resumable=False))
    with pytest.raises(Refused, match=r"needs 9 tokens.*holds 8.*SGLANG_USE_BLOCK_ALL") as refused:
        handshake.sized(sized(9))
    assert refused.value.reason is Reason.TOO_LONG


def test_a_slot_that_is_large_enough_is_used() -> None:
    handshake = Handshake("transfer-1")
    handshake.granted(a_grant(0, 0, resumable=False))
    assert handshake.sized(sized(8)) == []


@pytest.mark.parametrize("first_token", [7, 9])
def test_a_grant_with_a_gap_or_an_overlap_is_a_protocol_error(first_token: int) -> None:
    handshake, _ = begun(100)
    with pytest.raises(ProtocolError, match=f"token {first_token}, expected 8"):
        handshake.granted(a_grant(1, first_token))
    assert handshake.rounds == 1


def test_reports_that_match_no_grant_are_protocol_errors() -> None:
    handshake, _ = begun(8)
    with pytest.raises(ProtocolError, match="grant 5"):
        handshake.sent(sent(5, 8))
    handshake.sent(sent(0, 8))
    with pytest.raises(ProtocolError, match="grant 0"):
        handshake.sent(sent(0, 8))
    assert handshake.num_bytes == 10


def test_a_report_before_the_length_is_a_protocol_error() -> None:
    handshake = Handshake("transfer-1")
    handshake.granted(a_grant(0, 0))
    with pytest.raises(ProtocolError):
        handshake.sent(sent(0, 8))


def test_the_length_is_said_once() -> None:
    handshake, _ = begun(8)
    with pytest.raises(IllegalEvent):
        handshake.sized(sized(9))
    assert handshake.total_tokens == 8


def test_a_second_grant_before_the_length_changes_nothing() -> None:
    handshake = Handshake("transfer-1")
    handshake.granted(a_grant(0, 0))
    with pytest.raises(IllegalEvent):
        handshake.granted(a_grant(1, 8))
    assert handshake.rounds == 1
