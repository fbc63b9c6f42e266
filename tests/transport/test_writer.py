# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`transport/writer.py`: the staging pool that chunks share."""

import asyncio
import time

import pytest

from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.transport.writer import StagingPool


async def test_borrowers_are_served_in_order_of_arrival() -> None:
    staging = StagingPool(BlockPool(2, 4, 1))
    first = await staging.borrow(2)
    order: list[str] = []

    async def borrow(name: str, num_blocks: int) -> None:
        lease = await staging.borrow(num_blocks)
        order.append(name)
        staging.give_back(lease)

    late = [asyncio.ensure_future(borrow(*wish)) for wish in [("large", 2), ("small", 1)]]
    await asyncio.sleep(0)
    staging.give_back(first)
    await asyncio.wait_for(asyncio.gather(*late), 5)
    assert order == ["large", "small"]
    assert staging.pool.stats().free == 2


async def test_a_cancelled_borrower_lets_those_behind_it_through() -> None:
    staging = StagingPool(BlockPool(2, 4, 1))
    held = await staging.borrow(1)
    large = asyncio.ensure_future(staging.borrow(2))
    small = asyncio.ensure_future(staging.borrow(1))
    await asyncio.sleep(0)
    large.cancel()
    staging.give_back(await asyncio.wait_for(small, 5))
    staging.give_back(held)
    assert staging.pool.stats().free == 2


async def test_a_borrower_that_is_cancelled_as_blocks_come_back_keeps_none() -> None:
    """Before its task has seen the cancellation."""
    staging = StagingPool(BlockPool(1, 4, 1))
    held = await staging.borrow(1)
    waiting = asyncio.ensure_future(staging.borrow(1))
    await asyncio.sleep(0)
    waiting.cancel()
    staging.give_back(held)
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert staging.pool.stats().free == 1


async def test_a_borrower_that_is_cancelled_just_after_it_was_served_gives_back() -> None:
    staging = StagingPool(BlockPool(1, 4, 1))
    held = await staging.borrow(1)
    waiting = asyncio.ensure_future(staging.borrow(1))
    await asyncio.sleep(0)
    staging.give_back(held)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert staging.pool.stats().free == 1


async def test_a_closed_transfer_waits_no_longer() -> None:
    staging = StagingPool(BlockPool(1, 4, 1))
    held = await staging.borrow(1)
    closed = asyncio.Event()
    waiting = asyncio.ensure_future(staging.borrow_unless_over(1, closed, time.monotonic() + 60))
    await asyncio.sleep(0)
    closed.set()
    with pytest.raises(TransferFailed, match="closed"):
        await asyncio.wait_for(waiting, 5)
    staging.give_back(held)
    assert staging.pool.stats().free == 1


async def test_nobody_waits_longer_than_its_grant_is_valid() -> None:
    staging = StagingPool(BlockPool(1, 4, 1))
    held = await staging.borrow(1)
    late = staging.borrow_unless_over(1, asyncio.Event(), time.monotonic())
    with pytest.raises(TransferFailed, match="expired"):
        await asyncio.wait_for(late, 5)
    staging.give_back(held)
    assert staging.pool.stats().free == 1
