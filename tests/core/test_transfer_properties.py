# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Many transfers, one pool, and everything that can go wrong between them (R2, R4 to R9).

Hypothesis chooses what happens next; tests/core/world.py carries it out and checks the rules.
"""

import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import ChunkNotice
from dynamo.sglang_mm_resume.core.transitions import Receiving
from tests.core.world import SETTLE_S, TIMEOUT_S, Item, World

REPEATABLE = "CI" in os.environ
picks = st.integers(0, 60)
tokens = st.integers(1, 40) | st.integers(1, 4)
requests = st.tuples(tokens, st.sampled_from([0, 0, 0, 1]), st.floats(-9, 9))

shapes: dict[str, st.SearchStrategy[int]] = {
    "num_blocks": st.sampled_from([1, 2, 3, 4, 6, 9]),
    "block_size": st.integers(1, 3),
    "default_blocks": st.integers(1, 3),
    "chunk_blocks": st.integers(1, 3),
}
worlds = st.builds(World, **shapes)
limited_worlds = st.builds(
    World,
    **shapes,
    max_waiting=st.integers(0, 3),
    max_assembled_tokens=st.integers(1, 80),
    max_quarantined_blocks=st.integers(0, 4),
)


def one_of(items: list[Item], pick: int) -> Item:
    return items[pick % len(items)]


def possible(can: str) -> Any:
    """A rule for which `World.<can>()` finds something."""
    return precondition(lambda self: bool(getattr(self.world, can)()))


def hear_garbage(world: World, right: ChunkNotice) -> None:
    """Notices that are right in every field but one: of another grant, a chunk beyond the grant,
    too few rows, too many."""
    wrong = {field: getattr(right, field) for field in ("generation", "chunk", "first_token")}
    wrong["num_tokens"] = right.num_tokens
    if world.items[right.transfer_id].copied_out:  # else the receiver may not know better
        wrong["total_tokens"] = right.total_tokens
    for field, value in wrong.items():
        for change in (-2, -1, 1, 2):
            if value + change >= (field in ("num_tokens", "total_tokens")):
                world.hear_garbage(right.model_copy(update={field: value + change}))
    world.hear_garbage(right.model_copy(update={"transfer_id": "transfer-unknown"}))


class Transfers(RuleBasedStateMachine):
    @initialize(world=worlds | limited_worlds, first=st.lists(requests, min_size=1, max_size=5))
    def start(self, world: World, first: list[tuple[int, int, float]]) -> None:
        self.world = world
        for request in first:
            world.reserve(*request)

    @precondition(lambda self: len(self.world.items) < 8)
    @rule(request=requests)
    def reserve(self, request: tuple[int, int, float]) -> None:
        self.world.reserve(*request)

    @precondition(lambda self: self.world.items)
    @rule(pick=picks)
    def reserve_again(self, pick: int) -> None:
        self.world.require_used(one_of(list(self.world.items.values()), pick).transfer_id)

    # Progress.

    @possible("useful")
    @rule(choices=st.lists(picks, min_size=20, max_size=40))
    def progress(self, choices: list[int]) -> None:
        for choice in choices:
            self.world.progress(choice)
            self.world.check()

    @possible("can_open")
    @rule(pick=picks)
    def encode_request_arrives(self, pick: int) -> None:
        self.world.open(one_of(self.world.can_open(), pick))

    @possible("can_encode")
    @rule(pick=picks)
    def tower_has_run(self, pick: int) -> None:
        self.world.encode(one_of(self.world.can_encode(), pick))

    @possible("can_forward")
    @rule(pick=picks)
    def forwarded_grant_arrives(self, pick: int) -> None:
        self.world.forward(one_of(self.world.can_forward(), pick))

    @possible("can_post")
    @rule(pick=picks)
    def post(self, pick: int) -> None:
        self.world.post(one_of(self.world.can_post(), pick))

    @possible("can_land")
    @rule(pick=picks, num_tokens=st.integers(1, 9))
    def bytes_land(self, pick: int, num_tokens: int) -> None:
        self.world.land(one_of(self.world.can_land(), pick), num_tokens)

    @possible("can_land")
    @rule(pick=picks, num_tokens=st.integers(1, 9))
    def wrong_bytes_land(self, pick: int, num_tokens: int) -> None:
        self.world.land(one_of(self.world.can_land(), pick), num_tokens, spoilt=True)

    @possible("can_finish_write")
    @rule(pick=picks)
    def write_ends(self, pick: int) -> None:
        self.world.finish_write(one_of(self.world.can_finish_write(), pick))

    @possible("can_read_stream")
    @rule(pick=picks)
    def processor_reads(self, pick: int) -> None:
        self.world.read_stream(one_of(self.world.can_read_stream(), pick))

    @possible("can_copy")
    @rule(pick=picks, which=picks)
    def copy_ends(self, pick: int, which: int) -> None:
        self.world.finish_copy(one_of(self.world.can_copy(), pick), which)

    @possible("can_take")
    @rule(pick=picks)
    def engine_takes(self, pick: int) -> None:
        self.world.take(one_of(self.world.can_take(), pick))

    @precondition(lambda self: self.world.in_state(Receiving.IN_ENGINE))
    @rule(pick=picks)
    def engine_drops(self, pick: int) -> None:
        self.world.drop(one_of(self.world.in_state(Receiving.IN_ENGINE), pick))

    # Notices: delivered in any order, twice, late, or never.

    @precondition(lambda self: self.world.network)
    @rule(index=picks)
    def notice_arrives(self, index: int) -> None:
        self.world.deliver(index)

    @precondition(lambda self: self.world.network)
    @rule(index=picks)
    def notice_is_doubled(self, index: int) -> None:
        self.world.network.append(self.world.network[index % len(self.world.network)])

    @precondition(lambda self: self.world.delivered)
    @rule(index=picks)
    def old_notice_arrives_again(self, index: int) -> None:
        self.world.hear(self.world.delivered[index % len(self.world.delivered)])

    @precondition(lambda self: self.world.network)
    @rule(index=picks)
    def notice_is_lost(self, index: int) -> None:
        self.world.network.pop(index % len(self.world.network))

    @possible("open_chunks")
    @rule(pick=picks)
    def garbage_arrives(self, pick: int) -> None:
        notices = self.world.open_chunks()
        hear_garbage(self.world, notices[pick % len(notices)])

    # Failures.

    @precondition(lambda self: self.world.receiver.live)
    @rule(pick=picks)
    def processor_aborts_blindly(self, pick: int) -> None:
        self.world.abort(self.live_item(pick), writer_closed=False)

    @precondition(lambda self: self.world.receiver.live)
    @rule(pick=picks)
    def processor_aborts_after_closing_the_writer(self, pick: int) -> None:
        item = self.live_item(pick)
        self.world.close_writer(item)
        self.world.abort(item, writer_closed=item.quiet)

    @possible("cared_for")
    @rule(pick=picks)
    def processor_dies(self, pick: int) -> None:
        self.world.lose_processor(one_of(self.world.cared_for(), pick))

    @possible("can_lose_asker")
    @rule(pick=picks)
    def waiting_call_is_stopped(self, pick: int) -> None:
        self.world.lose_asker(one_of(self.world.can_lose_asker(), pick))

    @possible("can_miss_asker")
    @rule(pick=picks)
    def stopped_call_is_noticed(self, pick: int) -> None:
        self.world.miss_asker(one_of(self.world.can_miss_asker(), pick))

    @possible("can_hear")
    @rule(pick=picks)
    def grant_is_heard_of(self, pick: int) -> None:
        self.world.hear_grant(one_of(self.world.can_hear(), pick))

    @rule()
    def abort_overtakes_its_reserve(self) -> None:
        self.world.abort_before_reserve()

    @possible("can_fail_write")
    @rule(pick=picks)
    def write_fails(self, pick: int) -> None:
        self.world.fail_write(one_of(self.world.can_fail_write(), pick))

    @possible("can_copy")
    @rule(pick=picks, which=picks)
    def copy_fails(self, pick: int, which: int) -> None:
        self.world.fail_copy(one_of(self.world.can_copy(), pick), which)

    @possible("working")
    @rule(pick=picks)
    def writer_shuts_down(self, pick: int) -> None:
        self.world.close_writer(one_of(self.world.working(), pick))

    @possible("working")
    @rule(pick=picks)
    def writer_dies(self, pick: int) -> None:
        self.world.kill_writer(one_of(self.world.working(), pick))

    @possible("can_go_on")
    @rule(pick=picks)
    def stopped_writer_dies(self, pick: int) -> None:
        self.world.kill_writer(one_of(self.world.can_go_on(), pick))

    @possible("can_drain")
    @rule(pick=picks)
    def dead_writer_is_drained(self, pick: int) -> None:
        self.world.drain(one_of(self.world.can_drain(), pick))

    @possible("working")
    @rule(pick=picks, until_all_is_given_up=st.booleans())
    def writer_stops(self, pick: int, until_all_is_given_up: bool) -> None:
        self.world.pause_writer(one_of(self.world.working(), pick))
        if until_all_is_given_up:
            self.world.advance(TIMEOUT_S + 1)
            self.world.tick()

    @possible("can_go_on")
    @rule(pick=picks)
    def stopped_writer_goes_on(self, pick: int) -> None:
        self.world.go_on(one_of(self.world.can_go_on(), pick))

    @precondition(lambda self: self.world.can_retry() and len(self.world.items) < 12)
    @rule(pick=picks, offset=st.floats(-9, 9))
    def another_writer_tries(self, pick: int, offset: float) -> None:
        self.world.retry(one_of(self.world.can_retry(), pick), offset)

    @precondition(lambda self: self.asked())
    @rule(pick=picks)
    def question_is_lost(self, pick: int) -> None:
        self.world.lose_question(one_of(self.asked(), pick))

    def asked(self) -> list[Item]:
        return [item for item in self.world.items.values() if item.asked]

    @possible("can_answer")
    @rule(pick=picks)
    def writer_is_asked_to_close(self, pick: int) -> None:
        self.world.answer(one_of(self.world.can_answer(), pick))

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0, 29.5, 31.0]), seen=st.booleans())
    def time_passes(self, seconds: float, seen: bool) -> None:
        self.world.advance(seconds)
        if seen:
            self.world.tick()

    @rule()
    def deadlines_are_looked_at(self) -> None:
        self.world.tick()

    def live_item(self, pick: int) -> Item:
        names = list(self.world.receiver.live)
        return self.world.items[names[pick % len(names)]]

    @invariant()
    def rules_hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.wind_down()


TestTransfers = Transfers.TestCase
TestTransfers.settings = settings(
    max_examples=400,
    stateful_step_count=60,
    deadline=None,
    derandomize=REPEATABLE,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@settings(max_examples=60, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=worlds,
    lengths=st.lists(tokens, min_size=1, max_size=6),
    choices=st.randoms(use_true_random=False),
)
def test_without_faults_every_transfer_completes_through_any_pool(
    world: World, lengths: list[int], choices: Random
) -> None:
    """R4: no order of events, and no pool however small, leads to a deadlock."""
    items = [world.reserve(length, 0, 0.0) for length in lengths]
    run(world, choices, 20_000)
    assert all(item.completed for item in items)
    assert world.pool.stats().free == world.pool.num_blocks
    assert not world.receiver.oddities


@settings(max_examples=100, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=worlds,
    lengths=st.lists(tokens, min_size=1, max_size=4),
    choices=st.randoms(use_true_random=False),
)
def test_what_a_stopped_writer_holds_up_another_one_finishes(
    world: World, lengths: list[int], choices: Random
) -> None:
    """R6, R8, R13: whenever it stops, and however long after it goes on."""
    items = [world.reserve(length, 0, 0.0) for length in lengths]
    run(world, choices, choices.randrange(80))
    stopped = one_of(world.working() or items, choices.randrange(4))
    world.pause_writer(stopped)
    run(world, choices, 20_000)
    world.advance(TIMEOUT_S + 1)
    world.tick()
    given_up = [item for item in items if item.ended is not None]
    retried = [world.retry(item, 0.0) for item in given_up]
    run(world, choices, 20_000)  # as far as the blocks that are left allow
    world.go_on(stopped)
    run(world, choices, 20_000)
    assert all(item.completed for item in [*items, *retried] if item not in given_up)
    assert world.receiver.live == {}
    assert world.pool.stats().free == world.pool.num_blocks


@settings(max_examples=100, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=worlds,
    lengths=st.lists(tokens, min_size=1, max_size=4),
    choices=st.randoms(use_true_random=False),
)
def test_notices_that_do_not_match_change_nothing_at_any_step(
    world: World, lengths: list[int], choices: Random
) -> None:
    """R8, R9"""
    items = [world.reserve(length, 0, 0.0) for length in lengths]
    for _ in range(5):
        run(world, choices, choices.randrange(20))
        for notice in world.open_chunks():
            hear_garbage(world, notice)
    run(world, choices, 20_000)
    assert all(item.completed for item in items)


@settings(max_examples=100, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=limited_worlds,
    lengths=st.lists(tokens, min_size=1, max_size=8),
    choices=st.randoms(use_true_random=False),
)
def test_beyond_a_limit_a_transfer_is_refused_and_all_others_complete(
    world: World, lengths: list[int], choices: Random
) -> None:
    """R7: `World` compares every refusal with the limits."""
    for length in lengths:
        world.reserve(length, 0, 0.0)
        run(world, choices, choices.randrange(8))
    run(world, choices, 20_000)
    assert all(item.completed or item.ended for item in world.items.values())
    assert world.pool.stats().free == world.pool.num_blocks


@settings(max_examples=200, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=worlds,
    lengths=st.lists(st.integers(2, 40), min_size=2, max_size=4),
    choices=st.randoms(use_true_random=False),
)
def test_a_writer_that_goes_on_after_its_resume_was_stopped_overwrites_nobody(
    world: World, lengths: list[int], choices: Random
) -> None:
    """R6: the call is stopped while the writer may still fill what it was granted before; it is the
    last to hear of it. `World` compares every row that is copied out, and whose block was written.
    """
    items = [world.reserve(length, 0, 0.0) for length in lengths]
    while not (resuming := [i for i in world.in_state(Receiving.RESUMING) if not i.asker_lost]):
        assume(world.progress(choices.randrange(1000)))
        world.check()
    struck = one_of(resuming, choices.randrange(4))
    world.lose_asker(struck)
    world.miss_asker(struck)
    world.check()
    assert struck.asked, "its writer is asked to close"
    world.lose_question(struck)  # and does not hear of it before it has written all it can
    run(world, choices, 20_000)
    world.advance(SETTLE_S)
    world.tick()
    run(world, choices, 20_000)
    assert all(item.completed for item in items if item is not struck)
    assert world.pool.stats().free == world.pool.num_blocks


Fault = tuple[str, Callable[[World, Item], None]]


def close_and_abort(world: World, item: Item) -> None:
    world.close_writer(item)
    world.abort(item, writer_closed=item.quiet)


#: What may happen to one transfer, and is heard of: when it can, and how it happens.
HEARD: dict[str, Fault] = {
    "client_hangs_up": ("cared_for", lambda w, i: w.abort(i, writer_closed=False)),
    "client_hangs_up_and_writer_closes": ("cared_for", close_and_abort),
    "waiting_call_is_stopped": ("can_lose_asker", lambda w, i: w.lose_asker(i)),
    "write_fails": ("can_fail_write", lambda w, i: w.fail_write(i)),
    "copy_fails": ("can_copy", lambda w, i: w.fail_copy(i, 0)),
    "rows_are_corrupt": ("can_land", lambda w, i: w.land(i, 1, spoilt=True)),
}
#: What is only noticed because nothing comes any more.
SILENT: dict[str, Fault] = {
    "processor_dies": ("cared_for", lambda w, i: w.lose_processor(i)),
    "writer_dies": ("working", lambda w, i: w.kill_writer(i)),
    "writer_shuts_down": ("working", lambda w, i: w.close_writer(i)),
    "receiver_shuts_down": ("cared_for", lambda w, i: w.shut_down()),
}


@pytest.mark.parametrize("name", [*HEARD, *SILENT])
@settings(max_examples=60, deadline=None, derandomize=REPEATABLE, print_blob=True)
@given(
    world=worlds,
    lengths=st.lists(tokens, min_size=1, max_size=4),
    choices=st.randoms(use_true_random=False),
)
def test_one_fault_at_any_step(
    name: str, world: World, lengths: list[int], choices: Random
) -> None:
    """R6, R16: it costs one transfer, and nothing of that stays. A silent one may cost those their
    blocks who wait as long as it is not noticed.
    """
    items = [world.reserve(length, 0, 0.0) for length in lengths]
    can, happen = (HEARD | SILENT)[name]
    run(world, choices, choices.randrange(80))
    while not (possible_for := getattr(world, can)()):
        assume(world.progress(choices.randrange(1000)))
    struck = one_of(possible_for, choices.randrange(4))
    happen(world, struck)
    run(world, choices, 20_000)
    if name in HEARD:
        assert all(item.completed for item in items if item is not struck)
    if name == "rows_are_corrupt":
        assert not struck.completed
        assert isinstance(struck.ended, Refused) and struck.ended.reason is Reason.CORRUPT
    world.wind_down()


def run(world: World, choices: Random, num_actions: int) -> None:
    for _ in range(num_actions):
        if not world.progress(choices.randrange(1000)):
            break
        world.check()
