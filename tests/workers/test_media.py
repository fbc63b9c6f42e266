# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/media.py`: errors that say what is wrong, and logs that do not repeat the picture."""

import errno
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers.media import MediaLoader, ShortenUrls

BROKEN = Media(modality="image", url="data:image/png;base64," + "A" * 2000)


@pytest.fixture
def loader() -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(1), "model")


async def test_a_broken_picture_is_not_copied_to_the_log_or_the_client(
    loader: MediaLoader, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Refused, match="JPEG, PNG or WebP") as refused:
        await loader.load(BROKEN)
    assert "AAAA" not in refused.value.message
    assert "AAAA" not in caplog.text


def test_a_url_that_is_not_data_stays_readable() -> None:
    record = logging.LogRecord("n", 0, "f", 0, "HTTP 404: '%s'", ("https://a.example/b.png",), None)
    assert ShortenUrls().filter(record)
    assert record.getMessage() == "HTTP 404: 'https://a.example/b.png'"


async def test_our_own_machine_s_trouble_is_not_the_client_s(
    loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def out_of_files(url: str) -> Image.Image:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(loader._images, "load_image", out_of_files)
    with pytest.raises(OSError, match="Too many open files"):
        await loader.load(BROKEN)


async def test_equal_pixels_have_equal_hashes_per_model(loader: MediaLoader) -> None:
    white, also_white = (Image.new("RGB", (8, 8), "white") for _ in range(2))
    other_model = MediaLoader(ThreadPoolExecutor(1), "another model")
    wide = Image.new("RGB", (16, 4), "white")
    first = await loader.content_hash(white)
    assert first == await loader.content_hash(also_white)
    assert first != await loader.content_hash(wide)
    assert first != await other_model.content_hash(white)
