# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the sections share: a layout, rows that are known, and what is said of them."""

from typing import Final, NamedTuple

import torch

from dynamo.sglang_mm_resume.core.layout import Layout

#: Rows of Qwen2.5-VL-7B in the default block size: a block has 896 KiB.
LAYOUT: Final = Layout(model="gpu-check", width=3584, dtype="bfloat16", block_size=128)
HOST: Final = torch.device("cpu")


class Failed(Exception):
    """Something is not right; the text says what."""


class Skipped(Exception):
    """This section says nothing about such a device."""


class Figure(NamedTuple):
    """One line of the report."""

    name: str
    value: str


def require(right: bool, otherwise: str) -> None:
    """Raises `Failed` unless it is."""
    if not right:
        raise Failed(otherwise)


def rows_of(seed: int, num_tokens: int) -> torch.Tensor:
    """Rows that no other seed has, `(num_tokens, width)`, in host memory; NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_tokens, LAYOUT.width)
    rows = torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
    return rows.view(torch.bfloat16)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compared as whole numbers, as NaN differs from itself."""
    return torch.equal(one.cpu().view(torch.int16), other.cpu().view(torch.int16))


def speed(num_bytes: int, seconds: float) -> str:
    """In ms, and in GB/s of 10^9 bytes."""
    return f"{1e3 * seconds:8.3f} ms, {num_bytes / seconds / 1e9:7.2f} GB/s"


def pool_devices(device: torch.device) -> list[torch.device]:
    """Where a pool may be beside this device."""
    return [device] if device.type == "cpu" else [device, HOST]
