# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`transport/host_memory.py`: memory is used again, but never while somebody can see it."""

import gc

import pytest
import torch

from dynamo.sglang_mm_resume.transport.host_memory import WORTH_KEEPING, HostMemory

DTYPE = torch.float32
WIDTH = 256
LARGE = WORTH_KEEPING // (WIDTH * DTYPE.itemsize)  # tokens


@pytest.fixture
def host() -> HostMemory:
    return HostMemory(4 * WORTH_KEEPING)


def rows(host: HostMemory, num_tokens: int) -> torch.Tensor:
    return host.empty((num_tokens, WIDTH), DTYPE)


def test_memory_is_used_again(host: HostMemory) -> None:
    first = rows(host, LARGE + 1)
    address = first.data_ptr()
    del first
    again = rows(host, LARGE)
    assert again.data_ptr() == address
    assert again.shape == (LARGE, WIDTH)
    assert again.is_contiguous()


@pytest.mark.parametrize(
    "view_of",
    [
        lambda rows: rows[3:7],
        lambda rows: rows.view(-1),
        lambda rows: rows.numpy(),
        lambda rows: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(rows)),
    ],
    ids=["slice", "view", "numpy", "dlpack"],
)
def test_nobody_else_gets_what_a_view_can_still_see(host: HostMemory, view_of) -> None:
    first = rows(host, LARGE)
    address = first.data_ptr()
    view = view_of(first)
    del first
    gc.collect()
    assert rows(host, LARGE).data_ptr() != address
    del view
    gc.collect()
    assert host.num_kept_bytes == 2 * WORTH_KEEPING


def test_memory_far_too_large_is_not_wasted_on_a_small_embedding(host: HostMemory) -> None:
    large = rows(host, 2 * LARGE)
    address = large.data_ptr()
    del large
    assert rows(host, LARGE).data_ptr() != address


def test_what_is_kept_is_bounded(host: HostMemory) -> None:
    several = [rows(host, LARGE) for _ in range(6)]
    assert host.num_kept_bytes == 0
    del several
    assert host.num_kept_bytes == 4 * WORTH_KEEPING


def test_small_ones_are_not_kept(host: HostMemory) -> None:
    del (small := [rows(host, 1)])[:]
    assert small == [] and host.num_kept_bytes == 0
