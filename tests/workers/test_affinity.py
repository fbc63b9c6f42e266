# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/affinity.py`: pictures go where they were before, within bounds."""

import pytest

from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers import affinity
from dynamo.sglang_mm_resume.workers.affinity import Affinity


def media(name: str) -> Media:
    return Media(modality="image", url=f"http://host/{name}")


def test_a_picture_is_remembered_with_its_last_worker() -> None:
    hints = Affinity()
    assert hints.worker_of(media("a")) is None
    hints.remember(media("a"), 1)
    hints.remember(media("b"), 2)
    hints.remember(media("a"), 3)
    assert [hints.worker_of(media(name)) for name in "ab"] == [3, 2]


def test_the_longest_unseen_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "REMEMBERED", 2)
    hints = Affinity()
    for name in "abac":
        hints.remember(media(name), 1)
    assert [hints.worker_of(media(name)) for name in "abc"] == [1, None, 1]
