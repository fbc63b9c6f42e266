# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What our own contender is made to do: pools cut small, rounds forced, steps told apart."""

import pytest

from benchmarks.contenders.ours import RationedPool
from benchmarks.contenders.traced import GATHER, STAGING, Span, steps_of
from benchmarks.suites import allocator, pools, rounds
from benchmarks.suites.lengths import QUICK, STAGES
from benchmarks.workload import SETTINGS, PoolShape, Setup


@pytest.mark.parametrize("mode", [rounds.WAITING, rounds.AHEAD])
@pytest.mark.parametrize("num_rounds", rounds.ROUNDS)
def test_grants_are_so_small_that_it_takes_so_many_rounds(num_rounds: int, mode: str) -> None:
    pool = RationedPool(rounds.shape_of(num_rounds, mode))
    granted = []
    for _ in range(num_rounds):
        wanted = min(rounds.BLOCKS - sum(granted), pool.num_blocks)
        lease = pool.try_alloc_blocks(wanted, "transfer")
        assert lease is not None
        granted.append(len(lease.blocks))
        pool.release(lease)
    assert sum(granted) == rounds.BLOCKS


def test_waiting_has_room_for_one_grant_and_ahead_for_many() -> None:
    for num_rounds in rounds.ROUNDS[1:]:
        waiting = RationedPool(rounds.shape_of(num_rounds, rounds.WAITING))
        assert waiting.alloc_default("first") is not None
        assert waiting.try_alloc_blocks(1, "second") is None
        ahead = RationedPool(rounds.shape_of(num_rounds, rounds.AHEAD))
        assert all(ahead.alloc_default(name) is not None for name in ("first", "second"))


def test_the_default_grant_fits_the_smallest_pool() -> None:
    assert pools.shape_of(1) == PoolShape(pool_blocks=1, default_blocks=1)
    assert pools.shape_of(512) == PoolShape()


def test_size_first_asks_for_exactly_what_it_needs() -> None:
    shape = PoolShape(size_first=True)
    assert shape.of_exactly(3).default_blocks == 3
    assert shape.of_exactly(10_000).default_blocks == SETTINGS.pool_blocks


def test_no_stage_is_longer_than_what_a_receiver_assembles() -> None:
    for stage in (*STAGES, *QUICK):
        size = Setup(max(stage.tokens), stage.hidden).embedding_bytes
        assert size <= SETTINGS.max_assembled_mib * 2**20


@pytest.mark.parametrize("fragmented", [False, True])
@pytest.mark.parametrize("occupancy", allocator.OCCUPANCIES)
def test_a_pool_is_as_full_as_it_is_said_to_be(occupancy: int, fragmented: bool) -> None:
    pool = allocator.filled(1_000, occupancy, fragmented)
    assert pool.stats().held == occupancy * 10
    pool.check()


def test_a_fragmented_pool_has_no_long_runs() -> None:
    lease = allocator.filled(1_000, 50, fragmented=True).try_alloc_blocks(100, "anyone")
    assert lease is not None
    gaps = [b - a for a, b in zip(lease.blocks, lease.blocks[1:], strict=False)]
    assert max(gaps) > 1


def test_steps_begin_with_their_first_span_and_end_with_their_last() -> None:
    spans = [Span(STAGING, 11.0, 12.0), Span(GATHER, 12.5, 13.0), Span(STAGING, 10.5, 10.75)]
    assert steps_of(spans, origin=10.0) == {
        STAGING: [0.5, 2.0, 1.25],
        GATHER: [2.5, 3.0, 0.5],
    }
