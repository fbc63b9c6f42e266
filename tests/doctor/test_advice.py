# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What is recommended, by what was observed."""

from dynamo.sglang_mm_resume.doctor.advice import advice, default_grant, pool_size
from dynamo.sglang_mm_resume.doctor.report import Outcome
from dynamo.sglang_mm_resume.workers.status import Lengths
from tests.support.descriptions import prefill, worker


def test_a_default_grant_holds_three_of_four_embeddings() -> None:
    result = default_grant([prefill(p75=1000, default_blocks=8)])
    assert (result.outcome, result.figures["recommended_blocks"]) == (Outcome.OK, 8)


def test_a_smaller_default_grant_is_warned_of_with_the_flag_to_set() -> None:
    result = default_grant([prefill(p75=1025, default_blocks=8)])
    assert result.outcome is Outcome.WARN
    assert "--default-multimodal-blocks 9" in result.action
    assert result.figures == {
        "seen": 64,
        "p75_tokens": 1025,
        "max_tokens": 4000,
        "recommended_blocks": 9,
        "configured_blocks": 8,
    }


def test_the_worker_with_the_longest_embeddings_and_the_smallest_grant_count() -> None:
    result = default_grant([prefill(p75=200, default_blocks=2), prefill(p75=600)])
    assert result.outcome is Outcome.WARN
    assert (result.figures["recommended_blocks"], result.figures["configured_blocks"]) == (5, 2)


def test_too_few_embeddings_are_no_ground_for_advice() -> None:
    few = prefill(count=15, p75=None)
    result = default_grant([few])
    assert result.outcome is Outcome.SKIP
    assert "16 embeddings; the most are 15" in result.text
    assert pool_size([few]).outcome is Outcome.SKIP


def test_a_pool_has_two_default_grants_for_each_transfer_at_once() -> None:
    result = pool_size([prefill(p75=1000, peak_transfers=4, total_blocks=64)])
    assert (result.outcome, result.figures["recommended_blocks"]) == (Outcome.OK, 64)
    # 64 blocks of 128 tokens of 3,584 elements of 2 bytes.
    assert result.figures["recommended_mib"] == 56.0


def test_a_smaller_pool_is_warned_of_with_the_flag_to_set() -> None:
    result = pool_size([prefill(p75=1000, peak_transfers=40, total_blocks=512)])
    assert result.outcome is Outcome.WARN
    assert "--embedding-cache-buffer-size 80" in result.action
    assert "--default-multimodal-blocks 8" in result.action


def test_nobody_is_advised_of_a_layout_that_is_not_known() -> None:
    lengths = Lengths(count=64, p75=1000, max=4000)
    stranger = worker("prefill", width="wide", lengths=lengths, peak_transfers=4).description
    assert stranger is not None
    for workers in ([], [stranger]):
        assert [result.outcome for result in advice(workers)] == [Outcome.SKIP, Outcome.SKIP]
