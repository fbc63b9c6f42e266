# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/receiver.py`, rule by rule; test_transfer_properties.py looks for what is missing here."""

import math
from typing import Any
from unittest.mock import ANY

import pytest

from dynamo.sglang_mm_resume.core import receiver as receiver_module
from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.errors import (
    IllegalEvent,
    ProtocolError,
    Reason,
    Refused,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.lengths import ENOUGH, WINDOW
from dynamo.sglang_mm_resume.core.messages import Chunk, ChunkNotice, Grant, Reserve, chunks_of
from dynamo.sglang_mm_resume.core.receiver import (
    ADAPTED_SHARE,
    AskWriter,
    Completed,
    CopyOut,
    Effect,
    Ended,
    GrantMade,
    Oddity,
    Receiver,
    ReceiverLimits,
)
from dynamo.sglang_mm_resume.core.transitions import Receiving

START = 100.0
A, B, C = "transfer-a", "transfer-b", "transfer-c"
ABORTED = TransferFailed("aborted")


def a_receiver(num_blocks: int = 4, default_blocks: int = 2, **limits: Any) -> Receiver:
    """Blocks of four tokens, one block per chunk."""
    defaults: dict[str, Any] = {
        "wait_timeout_s": 30.0,
        "max_waiting": 10,
        "max_assembled_tokens": 1000,
        "chunk_blocks": 1,
        "resumable": True,
        "settle_interval_s": 1.0,
        "max_quarantined_blocks": num_blocks,
    }
    return Receiver(BlockPool(num_blocks, 4, default_blocks), ReceiverLimits(**defaults | limits))


def reserve(receiver: Receiver, name: str = A, now: float = START) -> list[Effect]:
    message = Reserve(transfer_id=name, writer_instance_id=7)
    return heard(receiver, receiver.reserve(message, now))


def heard(receiver: Receiver, effects: list[Effect]) -> list[Effect]:
    """Whoever asked hears of its grant."""
    for effect in effects:
        if isinstance(effect, GrantMade):
            receiver.answered(effect.transfer_id)
    return effects


def grant_of(effects: list[Effect], name: str = A) -> Grant:
    (grant,) = [e.grant for e in effects if isinstance(e, GrantMade) and e.transfer_id == name]
    return grant


def notice_of(grant: Grant, chunk: Chunk, total_tokens: int) -> ChunkNotice:
    return ChunkNotice(
        transfer_id=grant.transfer_id,
        generation=chunk.generation,
        chunk=chunk.index,
        first_token=chunk.first_token,
        num_tokens=chunk.num_tokens,
        total_tokens=total_tokens,
    )


def fill(receiver: Receiver, grant: Grant, total: int, copy: bool = True) -> list[Effect]:
    """All chunks of a grant land and, with `copy`, are copied out; the last call's effects."""
    effects: list[Effect] = []
    for chunk in chunks_of(grant, total):
        effects = receiver.landed(notice_of(grant, chunk, total), START)
        assert effects == [CopyOut(grant.transfer_id, chunk, total)]
    for chunk in chunks_of(grant, total) if copy else []:
        effects = heard(receiver, receiver.copied(grant.transfer_id, chunk, START))
    return effects


def test_the_default_grant_is_made_at_once() -> None:
    grant = grant_of(reserve(a_receiver()))
    assert (grant.blocks, grant.first_token, grant.capacity) == ((0, 1), 0, 8)
    assert (grant.valid_s, grant.chunk_blocks, grant.resumable) == (30.0, 1, True)


def test_an_embedding_in_one_grant() -> None:
    receiver = a_receiver()
    effects = fill(receiver, grant_of(reserve(receiver)), 7)
    assert effects == [Completed(A, total_tokens=7, rounds=1)]
    assert receiver.live == {A: Receiving.COMPLETE}
    assert receiver.pool.stats().free == 4
    receiver.take(A)
    assert receiver.next_deadline() == math.inf
    assert receiver.abort(A, False, ABORTED, START) == [Ended(A, ABORTED)]
    assert (receiver.live, receiver.assembled_tokens) == ({}, 0)


def test_chunks_complete_a_transfer_in_any_order() -> None:
    """R9"""
    receiver = a_receiver()
    grant = grant_of(reserve(receiver))
    first, second = chunks_of(grant, 7)
    for chunk in (second, first):
        receiver.landed(notice_of(grant, chunk, 7), START)
    assert receiver.copied(A, first, START) == []
    assert receiver.copied(A, second, START) == [Completed(A, total_tokens=7, rounds=1)]


def test_a_grant_says_how_long_it_was_waited_for_and_the_last_how_many_there_were() -> None:
    receiver = a_receiver(num_blocks=2)
    first = grant_of(reserve(receiver, A, START - 5))
    assert reserve(receiver, B, START - 3) == []
    assert fill(receiver, first, 12) == [GrantMade(B, ANY, waited_s=3.0)]
    assert receiver.resume(A, 8, 12, START - 1) == []
    ended, resumed = heard(receiver, receiver.abort(B, True, ABORTED, START))
    assert (ended, resumed) == (Ended(B, ABORTED), GrantMade(A, ANY, waited_s=1.0))
    assert fill(receiver, grant_of([resumed]), 12) == [Completed(A, total_tokens=12, rounds=2)]


def test_blocks_come_home_before_a_resume_waits() -> None:
    """R4: the chunk that is still being copied out holds the wish back."""
    receiver = a_receiver(num_blocks=1, default_blocks=1)
    grant = grant_of(reserve(receiver))
    (chunk,) = chunks_of(grant, 6)
    receiver.landed(notice_of(grant, chunk, 6), START)
    assert receiver.resume(A, 4, 6, START) == []
    assert receiver.live == {A: Receiving.RESUMING}
    assert receiver.num_waiting == 0
    again = grant_of(receiver.copied(A, chunk, START))
    assert (again.first_token, again.blocks) == (4, (0,))
    assert again.generation > grant.generation


def test_a_resume_asks_for_half_the_pool_at_most() -> None:
    receiver = a_receiver(num_blocks=6, default_blocks=1)
    fill(receiver, grant_of(reserve(receiver)), 400)
    assert len(grant_of(receiver.resume(A, 4, 400, START)).blocks) == 3


def test_a_try_grant_gives_blocks_at_once_or_none() -> None:
    receiver = a_receiver(num_blocks=4, default_blocks=2)
    reserve(receiver)
    grant = receiver.try_grant(A, 12, START)
    assert grant is not None and (grant.first_token, grant.blocks) == (8, (2,))
    assert receiver.try_grant(A, 12, START) is None, "everything is granted"
    reserve(receiver, B)
    assert receiver.live[B] is Receiving.WAITING
    heard(receiver, receiver.abort(A, True, ABORTED, START))
    assert receiver.live[B] is Receiving.RECEIVING


def test_a_transfer_that_was_given_up_gets_no_more_blocks() -> None:
    """Its processor may not know yet; what it asks for must not be booked."""
    receiver = a_receiver()
    reserve(receiver)
    receiver.abort(A, False, ABORTED, START)
    for ask in (receiver.try_grant, lambda *args: receiver.resume(A, 8, *args[1:])):
        with pytest.raises(Refused) as refused:
            ask(A, 12, START)
        assert refused.value.reason is Reason.UNKNOWN_TRANSFER
    assert receiver.assembled_tokens == 0


def test_a_try_grant_never_overtakes_who_waits() -> None:
    """R5"""
    receiver = a_receiver(num_blocks=3, default_blocks=2)
    reserve(receiver)
    reserve(receiver, B)
    assert receiver.pool.stats().free == 1
    assert receiver.try_grant(A, 12, START) is None


@pytest.mark.parametrize("sent_tokens", [0, 4, 7, 9])
def test_a_resume_that_does_not_continue_the_grants_is_a_protocol_error(sent_tokens: int) -> None:
    receiver = a_receiver()
    fill(receiver, grant_of(reserve(receiver)), 12)
    with pytest.raises(ProtocolError, match="grants cover 8 of 12"):
        receiver.resume(A, sent_tokens, 12, START)
    assert receiver.live == {A: Receiving.DRAINED}


def test_a_resume_with_nothing_left_is_a_protocol_error() -> None:
    receiver = a_receiver()
    reserve(receiver)
    with pytest.raises(ProtocolError):
        receiver.resume(A, 8, 8, START)


def test_a_second_resume_changes_nothing() -> None:
    receiver = a_receiver(num_blocks=2)
    fill(receiver, grant_of(reserve(receiver)), 12)
    reserve(receiver, B)
    receiver.resume(A, 8, 12, START)
    with pytest.raises((IllegalEvent, ProtocolError)):
        receiver.resume(A, 8, 12, START)
    assert (receiver.live[A], receiver.num_waiting) == (Receiving.WAITING, 1)


def test_a_length_is_said_once() -> None:
    receiver = a_receiver()
    reserve(receiver)
    receiver.try_grant(A, 12, START)
    with pytest.raises(ProtocolError, match="had 12 tokens, now 13"):
        receiver.try_grant(A, 13, START)


def test_slots_are_never_resumed() -> None:
    receiver = a_receiver(resumable=False)
    assert not grant_of(reserve(receiver)).resumable
    assert receiver.try_grant(A, 12, START) is None
    with pytest.raises(ProtocolError):
        receiver.resume(A, 8, 12, START)


# Limits (R7) and names (R13).


def test_too_many_waiting_transfers_are_refused_at_once() -> None:
    receiver = a_receiver(num_blocks=2, max_waiting=1)
    reserve(receiver)
    reserve(receiver, B)
    with pytest.raises(Refused, match="--mm-resume-max-waiting-transfers") as refused:
        reserve(receiver, C)
    assert refused.value.reason is Reason.OVERLOADED
    assert C not in receiver.live


def test_an_embedding_that_can_never_be_assembled_is_too_long() -> None:
    receiver = a_receiver(max_assembled_tokens=10)
    reserve(receiver)
    with pytest.raises(Refused) as refused:
        receiver.try_grant(A, 11, START)
    assert refused.value.reason is Reason.TOO_LONG


def test_assembled_tokens_are_bounded_over_all_transfers() -> None:
    receiver = a_receiver(max_assembled_tokens=10)
    reserve(receiver)
    reserve(receiver, B)
    receiver.try_grant(A, 6, START)
    with pytest.raises(Refused) as refused:
        receiver.try_grant(B, 6, START)
    assert refused.value.reason is Reason.OVERLOADED
    receiver.abort(A, True, ABORTED, START)
    receiver.try_grant(B, 6, START)
    assert receiver.assembled_tokens == 6


def test_a_notice_with_a_length_beyond_the_limit_ends_its_transfer_in_quarantine() -> None:
    receiver = a_receiver(max_assembled_tokens=10)
    grant = grant_of(reserve(receiver))
    ended, ask = receiver.landed(notice_of(grant, chunks_of(grant, 11)[0], 11), START)
    assert isinstance(ended, Ended) and isinstance(ended.error, Refused)
    assert ask == AskWriter(A, 7)
    assert receiver.live == {A: Receiving.QUARANTINED}


def test_too_much_quarantine_makes_it_unready_until_it_is_settled() -> None:
    """R6"""
    receiver = a_receiver(num_blocks=4, max_quarantined_blocks=1)
    reserve(receiver)
    receiver.abort(A, False, ABORTED, START)
    assert not receiver.is_ready
    with pytest.raises(Refused, match="2 of 4 blocks are quarantined") as refused:
        reserve(receiver, B)
    assert refused.value.reason is Reason.OVERLOADED
    receiver.writer_settled(A, START)
    assert receiver.is_ready
    assert grant_of(reserve(receiver, B), B)


def test_only_writers_of_open_grants_are_writing() -> None:
    receiver = a_receiver(num_blocks=3)
    grant = grant_of(reserve(receiver))
    reserve(receiver, B)
    assert receiver.writing == {A: 7}, "the other one waits"
    fill(receiver, grant, 7)
    assert receiver.writing == {B: 7}
    receiver.abort(B, False, ABORTED, START)
    assert receiver.writing == {}


def test_a_transfer_id_is_used_once() -> None:
    receiver = a_receiver()
    reserve(receiver)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            reserve(receiver)
        assert refused.value.reason is Reason.DUPLICATE
        receiver.abort(A, True, ABORTED, START)


def test_what_is_remembered_of_closed_transfers_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(receiver_module, "TOMBSTONES", 2)
    receiver = a_receiver()
    for name in (A, B, C):
        reserve(receiver, name)
        receiver.abort(name, True, ABORTED, START)
    assert len(receiver._closed) == 2


def test_unknown_transfers_are_refused() -> None:
    receiver = a_receiver()
    for ask in (
        lambda: receiver.try_grant(A, 1, START),
        lambda: receiver.take(A),
        lambda: receiver.resume(A, 1, 2, START),
    ):
        with pytest.raises(Refused) as refused:
            ask()
        assert refused.value.reason is Reason.UNKNOWN_TRANSFER
    assert receiver.writer_settled(A, START) == []


def test_an_abort_that_overtakes_its_reserve_still_ends_it() -> None:
    """R16: nobody would ever use those blocks."""
    receiver = a_receiver()
    assert receiver.abort(A, False, ABORTED, START) == []
    with pytest.raises(Refused) as refused:
        reserve(receiver)
    assert refused.value.reason is Reason.DUPLICATE


def test_a_complete_embedding_waits_longer_for_its_request() -> None:
    receiver = a_receiver()
    fill(receiver, grant_of(reserve(receiver)), 7)
    assert receiver.tick(START + 299) == []
    (ended,) = receiver.tick(START + 300)
    assert isinstance(ended, Ended)
    assert receiver.live == {}


# Oddities (R8).


def test_odd_notices_change_nothing_and_are_counted() -> None:
    receiver = a_receiver()
    grant = grant_of(reserve(receiver))
    first, second = chunks_of(grant, 7)
    good = notice_of(grant, second, 7)
    assert receiver.landed(good, START)
    odd = {
        Oddity.DUPLICATE: good,
        Oddity.STALE: good.model_copy(update={"generation": 9}),
        Oddity.UNKNOWN: good.model_copy(update={"transfer_id": "transfer-x"}),
        Oddity.MISFIT: notice_of(grant, first, 7).model_copy(update={"num_tokens": 2}),
    }
    misfits = [{"chunk": 5}, {"first_token": 5}, {"total_tokens": 8}, {"total_tokens": 70}]
    before = (receiver.live, receiver.pool.stats(), receiver.next_deadline())
    others = [notice_of(grant, first, 7).model_copy(update=misfit) for misfit in misfits]
    for notice in [*odd.values(), *others]:
        assert receiver.landed(notice, START + 1) == []
    assert (receiver.live, receiver.pool.stats(), receiver.next_deadline()) == before
    assert receiver.oddities == dict.fromkeys(odd, 1) | {Oddity.MISFIT: 1 + len(others)}


@pytest.mark.parametrize("writer_closed", [True, False])
def test_a_notice_after_the_end_is_late(writer_closed: bool) -> None:
    receiver = a_receiver()
    grant = grant_of(reserve(receiver))
    receiver.abort(A, writer_closed, ABORTED, START)
    assert receiver.landed(notice_of(grant, chunks_of(grant, 7)[0], 7), START) == []
    assert receiver.oddities == {Oddity.LATE: 1}


# Askers that are gone (R6).


def resuming(receiver: Receiver) -> Grant:
    """`A` waits for more blocks while its writer may fill those of the grant."""
    grant = grant_of(reserve(receiver))
    assert receiver.resume(A, grant.end_token, 12, START) == []
    assert receiver.live == {A: Receiving.RESUMING}
    return grant


def test_what_a_writer_may_fill_is_quarantined_when_the_asker_of_a_resume_is_gone() -> None:
    receiver = a_receiver()
    grant = resuming(receiver)
    assert receiver.asker_gone(A, ABORTED, START) == [Ended(A, ABORTED), AskWriter(A, 7)]
    assert receiver.live == {A: Receiving.QUARANTINED}
    assert receiver.pool.stats().quarantined == 2
    other = grant_of(reserve(receiver, B), B)
    assert set(other.blocks).isdisjoint(grant.blocks)


def test_a_grant_that_nobody_has_heard_of_is_free_when_its_asker_is_gone() -> None:
    receiver = a_receiver()
    receiver.reserve(Reserve(transfer_id=A, writer_instance_id=7), START)
    assert receiver.live == {A: Receiving.GRANTED}
    assert receiver.writing == {}, "no writer knows of it"
    assert receiver.asker_gone(A, ABORTED, START) == [Ended(A, ABORTED)]
    assert (receiver.live, receiver.pool.stats().free) == ({}, 4)


def test_a_place_in_the_queue_is_free_when_its_asker_is_gone() -> None:
    receiver = a_receiver(num_blocks=2)
    reserve(receiver)
    reserve(receiver, B)
    assert receiver.asker_gone(B, ABORTED, START) == [Ended(B, ABORTED)]
    assert receiver.num_waiting == 0


def test_an_asker_that_is_gone_frees_nothing_of_what_was_given_up_before() -> None:
    """The deadline of a resume passes, and its call is stopped in the same moment."""
    receiver = a_receiver()
    resuming(receiver)
    receiver.tick(START + 30)
    assert receiver.asker_gone(A, ABORTED, START + 30) == []
    assert receiver.pool.stats().quarantined == 2
    with pytest.raises(Refused):
        receiver.answered(A)


def test_an_asker_that_has_its_answer_cannot_be_gone() -> None:
    receiver = a_receiver()
    reserve(receiver)
    assert receiver.asker_gone(A, ABORTED, START) == []
    assert receiver.live == {A: Receiving.RECEIVING}


def test_a_notice_of_a_grant_that_no_writer_knows_is_stale() -> None:
    receiver = a_receiver()
    effects = receiver.reserve(Reserve(transfer_id=A, writer_instance_id=7), START)
    grant = grant_of(effects)
    assert receiver.landed(notice_of(grant, chunks_of(grant, 7)[0], 7), START) == []
    assert receiver.oddities == {Oddity.STALE: 1}


# Endings (R6).


def test_a_timeout_keeps_the_blocks_until_the_writer_is_settled() -> None:
    receiver = a_receiver()
    reserve(receiver)
    assert receiver.tick(START + 29) == []
    ended, ask = receiver.tick(START + 30)
    assert isinstance(ended, Ended) and isinstance(ended.error, TransferFailed)
    assert ask == AskWriter(A, 7)
    assert receiver.pool.stats().quarantined == 2
    assert receiver.tick(START + 31) == [AskWriter(A, 7)], "asked again and again"
    assert receiver.pool.stats().quarantined == 2
    assert receiver.writer_settled(A, START + 32) == []
    assert (receiver.live, receiver.pool.stats().free) == ({}, 4)


def test_a_transfer_that_waited_too_long_is_refused_as_a_timeout() -> None:
    receiver = a_receiver(num_blocks=2)
    reserve(receiver, now=START + 10)
    reserve(receiver, B)
    (ended,) = receiver.tick(START + 30)
    assert isinstance(ended, Ended) and ended.transfer_id == B
    assert isinstance(ended.error, Refused) and ended.error.reason is Reason.TIMEOUT


def test_a_transfer_that_is_granted_by_another_one_s_timeout_lives_on() -> None:
    receiver = a_receiver(num_blocks=3)
    reserve(receiver)
    reserve(receiver, B)
    effects = receiver.tick(START + 30)
    assert len(grant_of(effects, B).blocks) == 1, "what is not in quarantine"
    assert [e.transfer_id for e in effects if isinstance(e, Ended)] == [A]
    assert receiver.live == {A: Receiving.QUARANTINED, B: Receiving.GRANTED}


def test_an_abort_of_a_closed_writer_frees_at_once() -> None:
    receiver = a_receiver()
    reserve(receiver)
    assert receiver.abort(A, True, ABORTED, START) == [Ended(A, ABORTED)]
    assert receiver.pool.stats().free == 4


def test_an_abort_settles_a_quarantine_once_the_writer_is_closed() -> None:
    receiver = a_receiver(num_blocks=2)
    reserve(receiver)
    receiver.abort(A, False, ABORTED, START)
    assert receiver.abort(A, False, ABORTED, START) == []
    assert receiver.pool.stats().quarantined == 2
    reserve(receiver, B)
    assert grant_of(receiver.abort(A, True, ABORTED, START), B).blocks == (0, 1)


def test_a_copy_that_ends_after_its_transfer_changes_nothing() -> None:
    for writer_closed in (True, False):
        receiver = a_receiver()
        grant = grant_of(reserve(receiver))
        fill(receiver, grant, 7, copy=False)
        receiver.abort(A, writer_closed, ABORTED, START)
        before = (receiver.live, receiver.pool.stats())
        for chunk in chunks_of(grant, 7):
            assert receiver.copied(A, chunk, START) == []
        assert (receiver.live, receiver.pool.stats()) == before


def test_every_chunk_that_lands_postpones_the_deadline() -> None:
    receiver = a_receiver()
    grant = grant_of(reserve(receiver))
    receiver.landed(notice_of(grant, chunks_of(grant, 7)[0], 7), START + 20)
    assert receiver.tick(START + 49) == []
    assert receiver.next_deadline() == START + 50


def test_a_slot_waits_for_all_of_its_blocks() -> None:
    """Without resume, less than a slot would refuse an embedding that fits one."""
    receiver = a_receiver(num_blocks=4, default_blocks=4, resumable=False)
    reserve(receiver, A)
    receiver.abort(A, False, ABORTED, START)
    assert reserve(receiver, B) == []
    granted = grant_of(receiver.writer_settled(A, START), B)
    assert len(granted.blocks) == 4


def test_default_grants_follow_the_lengths_where_they_are_told_to() -> None:
    receiver = a_receiver(num_blocks=40, default_blocks=2, adaptive=True)
    sizes = [_transferred(receiver, f"transfer-{i}", 9) for i in range(ENOUGH + 1)]
    assert sizes == [2] * ENOUGH + [3]


def test_a_default_grant_is_an_eighth_of_the_pool_at_most() -> None:
    receiver = a_receiver(num_blocks=40, default_blocks=2, adaptive=True)
    for i in range(WINDOW):
        _transferred(receiver, f"longer-one-{i}", 60)
    assert receiver.pool.default_blocks == 40 // ADAPTED_SHARE
    receiver = a_receiver(num_blocks=4, default_blocks=2, adaptive=True)
    for i in range(ENOUGH):
        _transferred(receiver, f"shorter-one-{i}", 3)
    assert receiver.pool.default_blocks == 1


def test_default_grants_stay_as_configured_otherwise() -> None:
    receiver = a_receiver(num_blocks=40, default_blocks=2)
    assert [_transferred(receiver, f"transfer-{i}", 9) for i in range(20)] == [2] * 20


def test_lengths_are_remembered_whether_grants_follow_them_or_not() -> None:
    receiver = a_receiver(num_blocks=40, default_blocks=2)
    for i, total in enumerate((9, 60, 3)):
        _transferred(receiver, f"transfer-{i}", total)
    assert (len(receiver.lengths), receiver.lengths.longest) == (3, 60)


def test_the_peak_counts_transfers_that_have_or_want_blocks() -> None:
    receiver = a_receiver(num_blocks=4, default_blocks=2)
    assert receiver.peak_transfers == 0
    fill(receiver, grant_of(reserve(receiver, A)), 7)
    assert receiver.live[A] is Receiving.COMPLETE  # it needs no block any more
    for name in (B, C):
        reserve(receiver, name)
    assert receiver.peak_transfers == 2
    assert reserve(receiver, "waits-for-blocks") == []
    assert receiver.peak_transfers == 3
    for name in (B, C):
        receiver.abort(name, True, ABORTED, START)
    reserve(receiver, "a-later-one")
    assert receiver.peak_transfers == 3


def _transferred(receiver: Receiver, name: str, total: int) -> int:
    """One transfer from its reservation to its end; the blocks of its default grant."""
    grant = grant_of(reserve(receiver, name), name)
    receiver.try_grant(name, total, START)
    receiver.abort(name, True, ABORTED, START)
    return len(grant.blocks)
