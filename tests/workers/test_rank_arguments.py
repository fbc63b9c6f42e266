# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--tp-size` and `--dp-size` as in the launch examples of the original: tp 4 and dp 2 to encode,
tp 8 to prefill. What they make of processes is tested in tests/integration/test_ranks.py.
"""

from __future__ import annotations

import pytest
from dynamo.sglang.args import parse_args

from dynamo.sglang_mm_resume.workers.start_encode import ENGINE_ARGS as ENCODE_ARGS
from dynamo.sglang_mm_resume.workers.start_prefill import ENGINE_ARGS as PREFILL_ARGS
from dynamo.sglang_mm_resume.workers.towers import places
from tests.conftest import TRAINED_MODEL

MODEL = (
    "--model-path",
    str(TRAINED_MODEL),
    "--device",
    "cpu",
    "--attention-backend",
    "torch_native",
)
TP, DP = 4, 2


@pytest.mark.parametrize(
    ("flags", "tp_size", "dp_size"),
    [
        (("--tp-size", "4", "--dp-size", "2"), 4, 2),
        (("--tp", "4", "--dp", "2"), 4, 2),
        (("--tp-size", "8"), 8, 1),
        ((), 1, 1),
    ],
)
@pytest.mark.parametrize("ours", [ENCODE_ARGS, PREFILL_ARGS], ids=["encode", "prefill"])
async def test_the_flags_reach_the_engine(
    ours: tuple[str, ...], flags: tuple[str, ...], tp_size: int, dp_size: int
) -> None:
    server_args = (await parse_args([*ours, *MODEL, *flags])).server_args
    assert (server_args.tp_size, server_args.dp_size) == (tp_size, dp_size)


def test_every_rank_has_a_device_of_its_own() -> None:
    towers = [places(tower, TP) for tower in range(DP)]
    every = [place for tower in towers for place in tower]
    assert [place.device for place in every] == list(range(TP * DP))
    assert [[place.rank for place in tower] for tower in towers] == [list(range(TP))] * DP
    assert len({place.meeting_point for place in every}) == DP
