# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which requests are small, and which prefill workers can encode them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.config import Settings, spec_of
from dynamo.sglang_mm_resume.core.messages import Media, Sized
from dynamo.sglang_mm_resume.workers import start_processor
from dynamo.sglang_mm_resume.workers.adaptive import AdaptiveEncode
from dynamo.sglang_mm_resume.workers.sizes import KnownSizes
from dynamo.sglang_mm_resume.workers.start_processor import ProcessorConfig, build_parser


def policy(
    min_tokens: int | None, min_items: int | None, ids: tuple[int, ...] = ()
) -> AdaptiveEncode:
    """Knows pictures by the number of their tokens."""
    known = KnownSizes(None)
    for tokens in range(1, 30):
        sized = Sized(total_tokens=tokens, grid=(1, 4, tokens), content_hash="0" * 16)
        known.remember(picture(tokens), sized)
    settings = Settings(encode_min_tokens=min_tokens, encode_min_items=min_items)
    return AdaptiveEncode(settings, known, SimpleNamespace(instance_ids=lambda: list(ids)))


def picture(tokens: int) -> Media:
    return Media(modality="image", url=f"http://a/{tokens}")


@pytest.mark.parametrize(
    ("min_tokens", "min_items", "tokens", "small"),
    [
        (None, None, [1], False),
        (10, None, [], False),
        (10, None, [9], True),
        (10, None, [10], False),
        (10, None, [4, 5], True),
        (10, None, [4, 6], False),
        (10, None, [1, 99], False),  # nobody knows the second
        (None, 2, [20], True),
        (None, 2, [99], True),
        (None, 2, [1, 1], False),
        (10, 2, [9], True),
        (10, 2, [10], False),
        (10, 2, [1, 1], False),
    ],
)
async def test_small_is_below_every_limit_that_is_set(
    min_tokens: int | None, min_items: int | None, tokens: list[int], small: bool
) -> None:
    media = [picture(count) for count in tokens]
    assert await policy(min_tokens, min_items).is_small(media) is small


def test_a_worker_that_has_refused_is_not_asked_again() -> None:
    adaptive = policy(10, None, ids=(1, 2))
    assert adaptive.can_encode(1)
    adaptive.cannot_encode(1)
    assert [adaptive.can_encode(worker) for worker in (1, 2)] == [False, True]


def test_workers_that_have_left_are_forgotten() -> None:
    ids = [1]
    adaptive = policy(10, None)
    adaptive._prefill = SimpleNamespace(instance_ids=lambda: ids)  # type: ignore[assignment]
    adaptive.cannot_encode(1)
    ids[:] = [2]
    adaptive.cannot_encode(2)
    assert adaptive._blind == {2}


# --- At start ---


@pytest.mark.parametrize("setting", ["encode_min_tokens", "encode_min_items"])
def test_with_decode_workers_the_policy_is_refused(setting: str) -> None:
    config = ProcessorConfig.from_cli_args(
        build_parser().parse_args(["--model-path", "x", "--decode-workers"])
    )
    start_processor._require_possible(Settings(), config)
    with pytest.raises(ValueError, match=re.escape(spec_of(setting).label)):
        start_processor._require_possible(Settings(**{setting: 2}), config)


def test_a_model_whose_pictures_have_no_known_size_is_refused(tmp_path: Path) -> None:
    assert start_processor._image_rule(Settings(encode_min_items=2), tmp_path) is None
    with pytest.raises(BadArgument, match="--encode-min-items"):
        start_processor._image_rule(Settings(encode_min_tokens=2), tmp_path)
