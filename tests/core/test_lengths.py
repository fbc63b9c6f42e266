# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/lengths.py`: the length that three of four embeddings do not exceed."""

from dynamo.sglang_mm_resume.core.lengths import ENOUGH, WINDOW, RecentLengths


def test_a_few_lengths_say_nothing() -> None:
    lengths = RecentLengths()
    for _ in range(ENOUGH - 1):
        lengths.add(64)
    assert lengths.usual is None
    lengths.add(64)
    assert lengths.usual == 64


def test_three_of_four_do_not_exceed_the_usual_length() -> None:
    lengths = RecentLengths()
    for tokens in range(100, 0, -1):
        lengths.add(tokens)
    assert lengths.usual == 75


def test_old_lengths_are_forgotten() -> None:
    lengths = RecentLengths()
    for tokens in [9000] * WINDOW + [64] * WINDOW:
        lengths.add(tokens)
    assert lengths.usual == 64


def test_how_many_there_were_and_the_longest() -> None:
    lengths = RecentLengths()
    assert (len(lengths), lengths.longest) == (0, None)
    for tokens in (64, 900, 128):
        lengths.add(tokens)
    assert (len(lengths), lengths.longest) == (3, 900)
