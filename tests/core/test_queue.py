# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/queue.py`: who is served, and in which order (R5)."""

import pytest

from dynamo.sglang_mm_resume.core.blocks import BlockPool, Lease
from dynamo.sglang_mm_resume.core.queue import GrantQueue


def full_pool(num_blocks: int) -> tuple[BlockPool, list[Lease]]:
    """A pool whose blocks are all held, by one lease each."""
    pool = BlockPool(num_blocks, 4, 1)
    leases = [pool.try_alloc_blocks(1, "holder") for _ in range(num_blocks)]
    return pool, [lease for lease in leases if lease is not None]


def served(queue: GrantQueue) -> list[tuple[str, int]]:
    return [(key, len(lease.blocks)) for key, lease in queue.pump()]


def test_arrival_order_within_a_priority() -> None:
    pool, leases = full_pool(3)
    queue = GrantQueue(pool)
    for key in "abc":
        queue.push(key, 1)
    for lease in leases:
        pool.release(lease)
    assert served(queue) == [("a", 1), ("b", 1), ("c", 1)]
    assert len(queue) == 0


def test_larger_priority_is_served_earlier_and_arrival_decides_among_equals() -> None:
    pool, leases = full_pool(4)
    queue = GrantQueue(pool)
    for key, priority in [("low", -1), ("first", 0), ("high", 5), ("second", 0)]:
        queue.push(key, 1, priority)
    for lease in leases:
        pool.release(lease)
    assert [key for key, _ in served(queue)] == ["high", "first", "second", "low"]


def test_a_small_wish_never_overtakes_the_head() -> None:
    pool, leases = full_pool(3)
    queue = GrantQueue(pool)
    queue.push("large", 2)
    queue.push("small", 1)
    pool.release(leases[0])
    assert served(queue) == []
    pool.release(leases[1])
    assert served(queue) == [("large", 2)]
    pool.release(leases[2])
    assert served(queue) == [("small", 1)]


def test_a_wish_is_served_whole_or_not_at_all() -> None:
    pool, leases = full_pool(3)
    queue = GrantQueue(pool)
    queue.push("large", 3)
    for lease in leases[:2]:
        pool.release(lease)
        assert served(queue) == []
    assert pool.stats().free == 2
    pool.release(leases[2])
    assert served(queue) == [("large", 3)]


def test_a_cancelled_head_lets_the_next_one_through() -> None:
    pool, leases = full_pool(2)
    queue = GrantQueue(pool)
    queue.push("large", 2)
    queue.push("small", 1)
    pool.release(leases[0])
    queue.cancel("large")
    assert len(queue) == 1
    assert served(queue) == [("small", 1)]


def test_cancelling_an_unknown_wish_is_fine() -> None:
    GrantQueue(BlockPool(1, 4, 1)).cancel("nobody")


def test_a_cancelled_wish_that_comes_back_queues_anew() -> None:
    pool, leases = full_pool(2)
    queue = GrantQueue(pool)
    queue.push("a", 1)
    queue.push("b", 1)
    queue.cancel("a")
    queue.push("a", 2)
    for lease in leases:
        pool.release(lease)
    assert served(queue) == [("b", 1)]


def test_a_key_waits_once() -> None:
    queue = GrantQueue(full_pool(1)[0])
    queue.push("a", 1)
    with pytest.raises(ValueError, match="waits already"):
        queue.push("a", 1)


def test_trying_takes_blocks_at_once_or_nothing() -> None:
    pool = BlockPool(3, 4, 1)
    queue = GrantQueue(pool)
    lease = queue.try_now("a", 2)
    assert lease is not None and lease.blocks == (0, 1)
    assert queue.try_now("b", 2) is None
    assert (len(queue), pool.stats().free) == (0, 1)


def test_trying_never_overtakes_somebody_who_waits() -> None:
    pool, leases = full_pool(3)
    queue = GrantQueue(pool)
    queue.push("large", 2)
    pool.release(leases[0])
    assert queue.try_now("small", 1) is None
    assert pool.stats().free == 1


def test_a_wish_shrinks_to_what_can_ever_come_back_from_quarantine() -> None:
    pool, leases = full_pool(4)
    queue = GrantQueue(pool)
    queue.push("large", 4)
    pool.quarantine(leases[0])
    for lease in leases[1:3]:
        pool.release(lease)
    assert served(queue) == [], "one more block is held and will come back"
    pool.release(leases[3])
    assert served(queue) == [("large", 3)]


def test_nothing_is_served_while_everything_is_quarantined() -> None:
    pool, leases = full_pool(1)
    queue = GrantQueue(pool)
    queue.push("a", 1)
    pool.quarantine(leases[0])
    assert served(queue) == []
    pool.settle(leases[0])
    assert served(queue) == [("a", 1)]
