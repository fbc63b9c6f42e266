# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/media.py`: whose fault an error is, what it says, and names by content."""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from dynamo.common.http import HttpConnectionError, close_http_client
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from tests.support.client import data_url

LONG_S = 30.0
BROKEN = Media(modality="image", url="data:image/png;base64," + "A" * 2000)


@pytest.fixture
def loader() -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)


async def test_a_broken_picture_is_not_copied_to_the_log_or_the_client(
    loader: MediaLoader, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Refused, match="JPEG, PNG or WebP") as refused:
        await loader.load(BROKEN)
    assert "AAAA" not in refused.value.message
    assert "AAAA" not in caplog.text


async def test_our_own_machine_s_trouble_is_not_the_client_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYN_MM_ALLOW_INTERNAL", "1")
    loader = MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)
    with no_more_files(), pytest.raises(HttpConnectionError, match="Too many open files"):
        await loader.load(Media(modality="image", url="http://127.0.0.1:9/p.png"))
    await close_http_client()


@contextmanager
def no_more_files() -> Iterator[None]:
    """All file descriptors that this process may have are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1, hard))
    taken = [first]
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_equal_bytes_have_equal_names_per_model(loader: MediaLoader) -> None:
    other_model = MediaLoader(ThreadPoolExecutor(1), "another model", LONG_S)
    white, black = (_inline(Image.new("RGB", (8, 8), colour)) for colour in ("white", "black"))
    first = await loader.fetch(white)
    assert first == await loader.fetch(white)
    names = {first.key, (await loader.fetch(black)).key, (await other_model.fetch(white)).key}
    assert len(names) == 3
    assert first.key.startswith(first.content_hash)


def _inline(image: Image.Image) -> Media:
    return Media(modality="image", url=data_url(image))
