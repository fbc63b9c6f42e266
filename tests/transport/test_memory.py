# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`transport/memory.py`: where a token lies (R2)."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynamo.sglang_mm_resume.core.errors import ProtocolError
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.transport.memory import DTYPES, PoolMemory, adjacent_runs

NUM_BLOCKS, BLOCK_SIZE, WIDTH = 12, 3, 2
LAYOUT = Layout(model="m", width=WIDTH, dtype="float32", block_size=BLOCK_SIZE)
block_lists = st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, unique=True)


def a_memory() -> PoolMemory:
    memory = PoolMemory(LAYOUT, NUM_BLOCKS, torch.device("cpu"))
    memory.tensor.fill_(-1)
    return memory


def some_rows(num_tokens: int) -> torch.Tensor:
    return torch.arange(num_tokens * WIDTH, dtype=torch.float32).view(num_tokens, WIDTH)


@given(block_lists, st.data())
def test_scatter_puts_every_token_where_the_rule_says_and_nothing_else(
    blocks: list[int], data: st.DataObject
) -> None:
    num_tokens = data.draw(st.integers(1, len(blocks) * BLOCK_SIZE))
    memory, rows = a_memory(), some_rows(num_tokens)
    memory.scatter(rows, blocks)
    expected = torch.full_like(memory.tensor, -1)
    for t in range(num_tokens):
        expected[blocks[t // BLOCK_SIZE], t % BLOCK_SIZE] = rows[t]
    assert torch.equal(memory.tensor, expected)


@given(block_lists, st.data())
def test_gather_reads_every_token_where_the_rule_says(
    blocks: list[int], data: st.DataObject
) -> None:
    num_tokens = data.draw(st.integers(1, len(blocks) * BLOCK_SIZE))
    memory = a_memory()
    memory.tensor.copy_(torch.randn(memory.tensor.shape))
    rows = memory.empty_rows(num_tokens)
    memory.gather(blocks, rows)
    for t in range(num_tokens):
        assert torch.equal(rows[t], memory.tensor[blocks[t // BLOCK_SIZE], t % BLOCK_SIZE])


def test_blocks_out_of_order_leave_their_neighbours_alone() -> None:
    """Writing [9, 3, 4, 5, 0] from the lowest index on would overwrite blocks 1 and 2."""
    memory = a_memory()
    memory.scatter(some_rows(5 * BLOCK_SIZE), [9, 3, 4, 5, 0])
    for untouched in (1, 2, 6, 7, 8, 10, 11):
        assert bool((memory.tensor[untouched] == -1).all())


OTHER_ROWS = {
    "dtype": torch.ones(4, WIDTH, dtype=torch.bfloat16),
    "twice as wide": torch.ones(4, 2 * WIDTH),
    "half as wide": torch.ones(4, WIDTH // 2),
    "no rows": torch.ones(4 * WIDTH),
    "more than the blocks hold": torch.ones(2 * BLOCK_SIZE + 1, WIDTH),
}


@pytest.mark.parametrize("rows", OTHER_ROWS.values(), ids=OTHER_ROWS)
@pytest.mark.parametrize("direction", ["scatter", "gather"])
def test_rows_of_another_kind_are_refused_and_nothing_is_copied(
    direction: str, rows: torch.Tensor
) -> None:
    """R11: the copy moves bytes, so that float32 rows in a bfloat16 pool would become garbage."""
    memory, before = a_memory(), rows.clone()
    with pytest.raises(ProtocolError, match="rows"):
        memory.scatter(rows, [0, 1]) if direction == "scatter" else memory.gather([0, 1], rows)
    assert bool((memory.tensor == -1).all())
    assert torch.equal(rows, before)


def test_rows_that_do_not_lie_together() -> None:
    """Scattered, they are copied row by row; gathered into, they would overwrite their gaps."""
    memory, wide = a_memory(), torch.zeros(4, 2 * WIDTH)
    strided = wide[:, :WIDTH]
    strided.copy_(some_rows(4))
    memory.scatter(strided, [0, 1])
    assert torch.equal(memory.tensor.view(-1, WIDTH)[:4], some_rows(4))
    with pytest.raises(ProtocolError, match="strides"):
        memory.gather([0, 1], strided)
    assert torch.equal(wide[:, WIDTH:], torch.zeros(4, WIDTH))


@pytest.mark.parametrize(
    ("blocks", "runs"),
    [
        ([3, 4, 5, 9, 1, 2], [range(3, 6), range(9, 10), range(1, 3)]),
        ([7], [range(7, 8)]),
        ([2, 1, 0], [range(2, 3), range(1, 2), range(0, 1)]),
        ([], []),
    ],
)
def test_adjacent_runs(blocks: list[int], runs: list[range]) -> None:
    assert list(adjacent_runs(blocks)) == runs


@given(block_lists)
def test_runs_are_the_same_blocks_in_the_same_order_and_as_few_as_can_be(blocks: list[int]) -> None:
    runs = list(adjacent_runs(blocks))
    assert [block for run in runs for block in run] == blocks
    assert all(a.stop != b.start for a, b in pairwise(runs))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pool_has_the_dtype_and_size_of_its_layout(dtype: str) -> None:
    layout = Layout(model="m", width=5, dtype=dtype, block_size=4)
    memory = PoolMemory(layout, 3, torch.device("cpu"))
    assert memory.tensor.dtype is DTYPES[dtype]
    assert memory.num_bytes == memory.tensor.numel() * memory.tensor.element_size()
    assert memory.tensor.is_contiguous()
    assert memory.empty_rows(7).shape == (7, 5)
