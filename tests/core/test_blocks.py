# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/blocks.py`: who owns which block."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.errors import PoolError


def lease_of(pool: BlockPool, num_blocks: int, owner: str = "owner") -> Lease:
    lease = pool.try_alloc_blocks(num_blocks, owner)
    assert lease is not None
    return lease


def test_lowest_indices_come_first_even_when_they_are_not_adjacent() -> None:
    pool = BlockPool(num_blocks=6, block_size=4, default_blocks=2)
    first, second, third = (lease_of(pool, 2) for _ in range(3))
    pool.release(third)
    pool.release(first)
    assert second.blocks == (2, 3)
    assert lease_of(pool, 3).blocks == (0, 1, 4)


def test_a_wish_that_does_not_fit_takes_nothing() -> None:
    pool = BlockPool(num_blocks=4, block_size=4, default_blocks=2)
    lease_of(pool, 3)
    assert pool.try_alloc_blocks(2, "late") is None
    assert pool.stats().free == 1


def test_blocks_are_counted_from_tokens() -> None:
    pool = BlockPool(num_blocks=8, block_size=4, default_blocks=2)
    assert [len(lease.blocks) for n in (1, 4, 5) if (lease := pool.alloc(n, "x"))] == [1, 1, 2]


def test_the_default_grant_never_exceeds_the_pool() -> None:
    pool = BlockPool(num_blocks=3, block_size=4, default_blocks=8)
    lease = pool.alloc_default("x")
    assert lease is not None and lease.blocks == (0, 1, 2)
    assert pool.alloc_default("y") is None


@pytest.mark.parametrize("num_blocks", [0, -1, 5])
def test_a_wish_that_can_never_be_met_is_an_error(num_blocks: int) -> None:
    with pytest.raises(PoolError, match=f"{num_blocks} blocks asked of a pool of 4"):
        BlockPool(4, 4, 1).try_alloc_blocks(num_blocks, "x")


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_pool_of_nothing_is_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(PoolError):
        BlockPool(*sizes)


def test_a_second_release_is_an_error_and_changes_nothing() -> None:
    pool = BlockPool(2, 4, 1)
    lease = lease_of(pool, 1)
    pool.release(lease)
    with pytest.raises(PoolError, match="unknown"):
        pool.release(lease)
    pool.check()


def test_a_lease_of_another_pool_is_an_error() -> None:
    ours, theirs = BlockPool(2, 4, 1), BlockPool(2, 4, 1)
    lease_of(ours, 1, "ours")
    with pytest.raises(PoolError):
        ours.release(lease_of(theirs, 1, "theirs"))
    assert ours.stats().held == 1


def test_quarantined_blocks_return_only_through_settle() -> None:
    pool = BlockPool(2, 4, 1)
    lease = lease_of(pool, 2)
    pool.quarantine(lease)
    for end in (pool.release, pool.quarantine):
        with pytest.raises(PoolError, match="quarantined"):
            end(lease)
    assert pool.try_alloc_blocks(1, "x") is None
    assert (pool.usable_blocks, pool.stats().quarantined) == (0, 2)
    pool.settle(lease)
    assert (pool.usable_blocks, pool.stats().free) == (2, 2)


def test_settling_a_held_lease_is_an_error() -> None:
    pool = BlockPool(2, 4, 1)
    lease = lease_of(pool, 1)
    with pytest.raises(PoolError, match="held"):
        pool.settle(lease)
    assert pool.stats().held == 1


def test_check_finds_a_block_with_two_owners() -> None:
    pool = BlockPool(2, 4, 1)
    lease_of(pool, 1)
    pool._free.append(0)
    with pytest.raises(PoolError, match="owned twice"):
        pool.check()


class PoolAgainstModel(RuleBasedStateMachine):
    """A dict of sets is the whole truth about a pool."""

    @initialize(num_blocks=st.integers(1, 12), default=st.integers(1, 6), size=st.integers(1, 4))
    def start(self, num_blocks: int, default: int, size: int) -> None:
        self.pool = BlockPool(num_blocks, size, default)
        self.free = set(range(num_blocks))
        self.held: dict[int, Lease] = {}
        self.quarantined: dict[int, Lease] = {}
        self.ended: list[Lease] = []
        self.peak = 0

    def took(self, lease: Lease | None, wanted: int) -> None:
        if wanted > len(self.free):
            assert lease is None
            return
        assert lease is not None
        assert list(lease.blocks) == sorted(self.free)[:wanted], "not the lowest indices"
        seen = [*self.held, *self.quarantined, *(old.generation for old in self.ended)]
        assert all(lease.generation > generation for generation in seen)
        self.free -= set(lease.blocks)
        self.held[lease.generation] = lease
        self.peak = max(self.peak, self.pool.num_blocks - len(self.free))

    def any_of(self, leases: dict[int, Lease], pick: int) -> Lease:
        return leases[sorted(leases)[pick % len(leases)]]

    @rule(wanted=st.integers(1, 12))
    def alloc_blocks(self, wanted: int) -> None:
        wanted = min(wanted, self.pool.num_blocks)
        self.took(self.pool.try_alloc_blocks(wanted, "blocks"), wanted)

    @rule()
    def alloc_default(self) -> None:
        self.took(self.pool.alloc_default("default"), self.pool.default_blocks)

    @rule(num_tokens=st.integers(1, 48))
    def alloc_tokens(self, num_tokens: int) -> None:
        size = self.pool.block_size
        num_tokens = min(num_tokens, self.pool.num_blocks * size)
        self.took(self.pool.alloc(num_tokens, "tokens"), (num_tokens + size - 1) // size)

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        lease = self.any_of(self.held, pick)
        self.pool.release(lease)
        self.free |= set(lease.blocks)
        self.ended.append(self.held.pop(lease.generation))

    @precondition(lambda self: self.held)
    @rule(pick=st.integers(0, 99))
    def quarantine(self, pick: int) -> None:
        lease = self.any_of(self.held, pick)
        self.pool.quarantine(lease)
        self.quarantined[lease.generation] = self.held.pop(lease.generation)

    @precondition(lambda self: self.quarantined)
    @rule(pick=st.integers(0, 99))
    def settle(self, pick: int) -> None:
        lease = self.any_of(self.quarantined, pick)
        self.pool.settle(lease)
        self.free |= set(lease.blocks)
        self.ended.append(self.quarantined.pop(lease.generation))

    @precondition(lambda self: self.ended)
    @rule(pick=st.integers(0, 99), end=st.sampled_from(["release", "quarantine", "settle"]))
    def end_twice(self, pick: int, end: str) -> None:
        with pytest.raises(PoolError):
            getattr(self.pool, end)(self.ended[pick % len(self.ended)])

    @rule(end=st.sampled_from(["release", "quarantine", "settle"]), block=st.integers(0, 11))
    def end_foreign(self, end: str, block: int) -> None:
        with pytest.raises(PoolError):
            getattr(self.pool, end)(Lease(10**6, "foreign", (block,)))

    @invariant()
    def every_block_has_one_owner(self) -> None:
        self.pool.check()
        leases = {**self.held, **self.quarantined}
        assert sorted(self.pool.leases(), key=lambda lease: lease.generation) == [
            leases[generation] for generation in sorted(leases)
        ]
        stats = self.pool.stats()
        assert stats.free == len(self.free)
        assert stats.held == sum(len(lease.blocks) for lease in self.held.values())
        assert stats.quarantined == sum(len(lease.blocks) for lease in self.quarantined.values())
        assert stats.free + stats.held + stats.quarantined == stats.total
        assert stats.peak_used == self.peak
        assert self.pool.usable_blocks == stats.free + stats.held


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
