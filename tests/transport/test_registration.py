# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A pool tensor is registered once in an agent's life, whatever passes through it (R1)."""

import asyncio
from typing import Any

import pytest
from nixl import nixl_agent

from dynamo.sglang_mm_resume.transport import nixl_agent as module
from tests.transport.pair import BLOCK_SIZE, DEADLINE_S, a_pair, hand_over, rows_of, same_bits


async def test_an_agent_registers_one_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[tuple[str, int]] = []
    deregistered: list[str] = []

    class CountingAgent(nixl_agent):
        def register_memory(self, memory: Any, *args: Any, **options: Any) -> Any:
            registered.append((self.name, memory.data_ptr()))
            return super().register_memory(memory, *args, **options)

        def deregister_memory(self, *args: Any, **options: Any) -> Any:
            deregistered.append(self.name)
            return super().deregister_memory(*args, **options)

    monkeypatch.setattr(module, "nixl_agent", CountingAgent)
    async with a_pair(4, 2, 2) as (receiving, writing):
        sides = (receiving, writing)
        expected = [(side.agent.name, side.memory.tensor.data_ptr()) for side in sides]
        for length in (1, 5 * BLOCK_SIZE, 20 * BLOCK_SIZE):
            rows = rows_of(length, length)
            got, _ = await asyncio.wait_for(hand_over(receiving, writing, rows), DEADLINE_S)
            assert same_bits(got, rows)
        assert registered == expected
        assert deregistered == []
    assert sorted(deregistered) == sorted(name for name, _ in expected)
