# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens of pictures that nobody has fetched: by transformers' own rule, or unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from dynamo.sglang_mm_resume.core.messages import Media, Sized
from dynamo.sglang_mm_resume.workers import sizes
from dynamo.sglang_mm_resume.workers.sizes import ImageRule, KnownSizes
from tests.support.client import data_url

RULE = ImageRule(token_side=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
SIZED = Sized(total_tokens=7, grid=(1, 4, 7), content_hash="0" * 16)


def media(url: str) -> Media:
    return Media(modality="image", url=url)


@pytest.mark.parametrize("rule", [RULE, ImageRule(32, 65536, 16777216)], ids=["qwen2", "qwen3"])
def test_tokens_are_those_of_transformers(rule: ImageRule) -> None:
    random = np.random.default_rng(1)
    shapes = [(1, 1), (13, 14), (42, 42), (28, 5000), (9000, 9000), (1, 200)]
    shapes += [tuple(s) for s in np.exp(random.uniform(2.5, 8.5, (400, 2))).astype(int).tolist()]
    seen = 0
    for width, height in shapes:
        if max(width, height) > 200 * min(width, height):
            continue
        side = rule.token_side
        rows, columns = smart_resize(height, width, side, rule.min_pixels, rule.max_pixels)
        assert rule.tokens(width, height) == rows * columns // side**2, (width, height)
        seen += 1
    assert seen > 300


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}},
        {"min_pixels": 3136, "max_pixels": 1003520},
        {"min_pixels": 3136, "max_pixels": 1003520, "size": {"shortest_edge": 1}},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_rule_of_a_model(tmp_path: Path, options: dict[str, Any], nested: bool) -> None:
    options = {"patch_size": 14, "merge_size": 2, **options}
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"image_processor": options} if nested else options
    (tmp_path / name).write_text(json.dumps(content))
    assert ImageRule.of_model(tmp_path) == ImageRule(28, 3136, 1003520)


@pytest.mark.parametrize("options", [None, {}, {"size": {"height": 224, "width": 224}}])
def test_a_model_of_another_kind_has_no_rule(
    tmp_path: Path, options: dict[str, Any] | None
) -> None:
    if options is not None:
        content = {"patch_size": 14, "merge_size": 2, **options}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert ImageRule.of_model(tmp_path) is None


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
async def test_a_data_url_has_its_size_in_it(image_format: str) -> None:
    url = data_url(Image.new("RGB", (28 * 5, 28 * 3)), image_format)
    assert await KnownSizes(RULE).tokens(media(url)) == 15


async def test_the_first_part_of_a_large_picture_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28 * 10, 28 * 10, 3), dtype=np.uint8)
    url = data_url(Image.fromarray(noise))
    monkeypatch.setattr(sizes, "HEADER_CHARS", 200)
    assert len(url) > 10_000
    assert await KnownSizes(RULE).tokens(media(url)) == 100


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "file:///a.png",
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,%%%%",
        "data:image/png,AAAA",
        "data:",
    ],
)
async def test_what_cannot_be_told_is_unknown(url: str) -> None:
    assert await KnownSizes(RULE).tokens(media(url)) is None
    assert await KnownSizes(None).tokens(media(data_url(Image.new("RGB", (56, 56))))) is None


async def test_what_an_encode_worker_has_said_is_known() -> None:
    known = KnownSizes(None)
    known.remember(media("http://a/b"), SIZED)
    assert await known.tokens(media("http://a/b")) == 7
    assert known.seen(media("http://a/b")) == SIZED
    assert known.seen(media("http://a/c")) is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "REMEMBERED", 2)
    known = KnownSizes(None)
    for name in ("a", "b", "a", "c"):
        known.remember(media(name), SIZED)
    assert [known.seen(media(name)) is not None for name in "abc"] == [True, False, True]
