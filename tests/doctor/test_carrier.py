# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which transport it was, by what was counted."""

import pytest

from dynamo.sglang_mm_resume.doctor.carrier import Carrier, bandwidth, carrier, difference

MIB = 2**20
DRAM, VRAM, MIXED = {"DRAM"}, {"VRAM"}, {"DRAM", "VRAM"}


@pytest.mark.parametrize(
    ("tcp", "rdma", "one_machine", "memories", "expected"),
    [
        (100 * MIB, None, True, DRAM, Carrier.TCP),
        (100 * MIB, None, False, VRAM, Carrier.TCP),
        (90 * MIB, 0, False, DRAM, Carrier.TCP),  # the last acknowledgement is on its way
        (20_000, None, True, DRAM, Carrier.CMA),
        (20_000, 300, True, DRAM, Carrier.CMA),
        (20_000, 100 * MIB, True, DRAM, Carrier.RDMA),
        (20_000, 100 * MIB, False, VRAM, Carrier.RDMA),
        (20_000, None, False, DRAM, Carrier.RDMA),  # by a device that counts nothing
        (20_000, None, True, VRAM, Carrier.CUDA_IPC),
        (20_000, None, True, MIXED, Carrier.UNKNOWN),
        (None, None, True, DRAM, Carrier.UNKNOWN),
    ],
)
def test_who_carried_a_hundred_mebibytes(
    tcp: int | None, rdma: int | None, one_machine: bool, memories: set[str], expected: Carrier
) -> None:
    assert carrier(100 * MIB, tcp, rdma, one_machine, memories) is expected


def test_nothing_moved_says_nothing() -> None:
    assert carrier(0, 0, 0, True, DRAM) is Carrier.UNKNOWN


def test_counters_that_were_set_back_are_not_known() -> None:
    assert difference(30, 10) == 20
    assert difference(10, 30) is None
    assert difference(None, 30) is None
    assert difference(30, None) is None


def test_bandwidth_is_told_in_decimal_gigabytes() -> None:
    assert bandwidth(5_000_000_000, 2.0) == "2.5 GB/s"
    assert bandwidth(1, 0.0) == "- GB/s"
