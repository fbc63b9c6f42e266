# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/cache.py`: what stays, what has to go, and who may count on it."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.cache import CacheEntry, EmbeddingCache
from dynamo.sglang_mm_resume.core.errors import PoolError
from dynamo.sglang_mm_resume.core.messages import Sized

NUM_BLOCKS = 8
BLOCK_SIZE = 4
RESERVE = 2


def sized(num_blocks: int) -> Sized:
    return Sized(total_tokens=num_blocks * BLOCK_SIZE, grid=(1, 2, 2), content_hash="0" * 16)


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(NUM_BLOCKS, BLOCK_SIZE, 1)


@pytest.fixture
def cache(pool: BlockPool) -> EmbeddingCache:
    return EmbeddingCache(pool, RESERVE)


def stored(cache: EmbeddingCache, key: str, num_blocks: int) -> CacheEntry:
    """An entry that nobody uses."""
    entry = cache.allocate(key, sized(num_blocks))
    assert entry is not None
    cache.publish(entry)
    cache.unpin(entry)
    return entry


def test_what_was_stored_is_found_in_its_blocks(cache: EmbeddingCache) -> None:
    entry = stored(cache, "a", 3)
    assert cache.find("a") is entry
    assert entry.lease.blocks == (0, 1, 2)
    assert cache.find("b") is None
    assert (cache.totals.cache_hits, cache.totals.cache_misses) == (1, 1)


def test_nobody_finds_what_is_not_complete(cache: EmbeddingCache, pool: BlockPool) -> None:
    entry = cache.allocate("a", sized(3))
    assert entry is not None
    assert cache.find("a") is None
    cache.unpin(entry)
    assert pool.num_free == NUM_BLOCKS, "it was given up, and left something behind"


def test_the_least_recently_used_goes_first(cache: EmbeddingCache) -> None:
    for key in "abc":
        stored(cache, key, 2)
    for key in "ab":
        entry = cache.find(key)
        assert entry is not None
        cache.unpin(entry)
    stored(cache, "d", 3)  # two are free
    assert cache.find("c") is None
    assert cache.find("a") is not None and cache.find("b") is not None
    assert cache.totals.cache_evictions == 1


def test_what_is_read_is_not_evicted(cache: EmbeddingCache, pool: BlockPool) -> None:
    stored(cache, "a", 3)
    stored(cache, "b", 3)
    entry = cache.find("a")
    assert entry is not None
    assert cache.make_room(5)
    assert not cache.make_room(6)
    assert cache.find("b") is None
    cache.unpin(entry)
    assert cache.make_room(NUM_BLOCKS)
    assert pool.num_free == NUM_BLOCKS


def test_room_that_cannot_be_made_costs_nobody_their_entry(
    cache: EmbeddingCache, pool: BlockPool
) -> None:
    stored(cache, "a", 3)
    assert pool.try_alloc_blocks(4, "another") is not None
    assert not cache.make_room(5)
    assert cache.allocate("b", sized(5)) is None
    assert cache.find("a") is not None


def test_pinned_entries_leave_the_reserve(cache: EmbeddingCache, pool: BlockPool) -> None:
    """R4: who has a receiver's blocks can stage, whatever waits for them."""
    assert cache.allocate("large", sized(NUM_BLOCKS - RESERVE + 1)) is None
    assert cache.allocate("fits", sized(NUM_BLOCKS - RESERVE)) is not None
    assert cache.allocate("one more", sized(1)) is None
    assert pool.num_free == RESERVE


def test_finding_leaves_the_reserve_as_well(cache: EmbeddingCache) -> None:
    stored(cache, "a", 4)
    assert cache.allocate("b", sized(4)) is not None
    assert cache.find("a") is None, "then all blocks would be pinned"


def test_of_two_equal_ones_the_first_is_found(cache: EmbeddingCache, pool: BlockPool) -> None:
    first, second = (cache.allocate("a", sized(2)) for _ in range(2))
    assert first is not None and second is not None
    for entry in (first, second):
        cache.publish(entry)
        cache.unpin(entry)
    assert cache.find("a") is first
    assert pool.num_free == NUM_BLOCKS - 2


def test_only_what_is_pinned_can_be_shared(cache: EmbeddingCache) -> None:
    with pytest.raises(PoolError, match="not pinned"):
        cache.pin(stored(cache, "a", 1))


class CacheMachine(RuleBasedStateMachine):
    """Embeddings of few names come and go, others borrow blocks: nothing is lost or given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE, 1)
        self.cache = EmbeddingCache(self.pool, RESERVE)
        self.pinned: list[CacheEntry] = []
        self.lent: list[Lease] = []

    @rule(key=st.sampled_from("abcd"), num_blocks=st.integers(1, NUM_BLOCKS))
    def store(self, key: str, num_blocks: int) -> None:
        entry = self.cache.allocate(key, sized(num_blocks))
        if entry is not None:
            self.pinned.append(entry)

    @rule(key=st.sampled_from("abcd"))
    def find(self, key: str) -> None:
        entry = self.cache.find(key)
        if entry is not None:
            assert entry.key == key
            self.pinned.append(entry)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        self.cache.publish(data.draw(st.sampled_from(self.pinned)))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.pinned))
        self.pinned.remove(entry)
        self.cache.unpin(entry)

    @rule(num_blocks=st.integers(1, NUM_BLOCKS))
    def borrow(self, num_blocks: int) -> None:
        if self.cache.make_room(num_blocks):
            lease = self.pool.try_alloc_blocks(num_blocks, "borrower")
            assert lease is not None
            self.lent.append(lease)

    @precondition(lambda self: self.lent)
    @rule()
    def give_back(self) -> None:
        self.pool.release(self.lent.pop())

    @invariant()
    def every_block_has_one_owner(self) -> None:
        self.pool.check()

    @invariant()
    def what_is_read_keeps_its_blocks(self) -> None:
        leases = {lease.generation: lease for lease in self.pool.leases()}
        for entry in self.pinned:
            assert leases[entry.lease.generation] == entry.lease

    @invariant()
    def the_reserve_is_left(self) -> None:
        pinned = {block for entry in self.pinned for block in entry.lease.blocks}
        assert len(pinned) <= NUM_BLOCKS - RESERVE

    @invariant()
    def blocks_add_up(self) -> None:
        pinned = {block for entry in self.pinned for block in entry.lease.blocks}
        lent = sum(len(lease.blocks) for lease in self.lent)
        idle = self.cache.num_idle_blocks
        assert self.pool.num_free + idle + len(pinned) + lent == NUM_BLOCKS


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
