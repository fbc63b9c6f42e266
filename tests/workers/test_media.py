# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/media.py`: where media come from, whose fault an error is, and names by content."""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from dynamo.common.http import HttpConnectionError, close_http_client
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers.media import MediaLoader, content_hash_of
from tests.support.client import data_url
from tests.support.pictures import patchwork

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


# --- Local files ---

PICTURE = patchwork(1, 4, 3)
ALLOWED = "DYN_MM_LOCAL_PATH"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is allowed, with a picture; next to it is one that is not."""
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    for place in (allowed, tmp_path):
        PICTURE.save(place / "a b.png")
    monkeypatch.setenv(ALLOWED, str(allowed))
    return allowed


@pytest.fixture
def local_loader(folder: Path) -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)


async def test_a_file_is_read_where_the_operator_allows_it(
    folder: Path, local_loader: MediaLoader
) -> None:
    path = folder / "a b.png"
    for url in (path.as_uri(), str(path), f"FILE://{path}".replace(" ", "%20")):
        picture = (await local_loader.load(Media(modality="image", url=url))).media
        assert picture.tobytes() == PICTURE.tobytes()


async def test_no_other_file_is_read(folder: Path, local_loader: MediaLoader) -> None:
    (folder / "out.png").symlink_to(folder.parent / "a b.png")
    os.mkfifo(folder / "pipe.png")
    outside = [f"{folder}/../a b.png", f"{folder.parent}/a b.png", "/etc/passwd", "a b.png"]
    nowhere = [f"{folder}/no.png", "/no.png", f"{folder}", f"{folder}/pipe.png", "file://%00"]
    said = set()
    for url in [*outside, *nowhere, f"{folder}/out.png", f"{folder}%2f..%2fa b.png"]:
        for form in (url, url if "://" in url else f"file://{url}"):
            refused = await _refused(local_loader, Media(modality="image", url=form))
            said.add(refused.message.rpartition(": ")[2])
    assert said == {"is not a file that may be read (DYN_MM_LOCAL_PATH)"}


async def test_local_files_are_off_by_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ALLOWED)
    loader = MediaLoader(ThreadPoolExecutor(1), "model", LONG_S)
    refused = await _refused(loader, Media(modality="image", url=(folder / "a b.png").as_uri()))
    assert "local file access is not allowed" in refused.message


async def test_a_large_file_is_not_read_to_its_end(
    folder: Path, local_loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_MM_MAX_FILE_SIZE_MB", "1")
    for size, said in ((2**20, "cannot be decoded"), (2**20 + 1, "exceeds 1048576 bytes")):
        (folder / "large").write_bytes(bytes(size))
        refused = await _refused(local_loader, Media(modality="image", url=f"{folder}/large"))
        assert said in refused.message


# --- Names ---


async def test_equal_bytes_have_equal_names_per_model(loader: MediaLoader) -> None:
    other_model = MediaLoader(ThreadPoolExecutor(1), "another model", LONG_S)
    white, black = (_inline(Image.new("RGB", (8, 8), colour)) for colour in ("white", "black"))
    first = await loader.fetch(white)
    assert first == await loader.fetch(white)
    others = [await loader.fetch(black), await other_model.fetch(white)]
    assert len({content.content_hash for content in (first, *others)}) == 3
    assert (await loader.load(white)).content_hash == first.content_hash


def test_what_is_named_is_told_apart_however_it_is_cut() -> None:
    """The parts of a name are of any length, and the last one is the client's."""
    text = "pixels RGB"
    cuts = [(i, j) for i in range(len(text)) for j in range(i, len(text))]
    names = {content_hash_of(text[:i], text[i:j], text[j:].encode()) for i, j in cuts}
    assert len(names) == len(cuts)
    assert all(len(name) == 64 for name in names)


def _inline(image: Image.Image) -> Media:
    return Media(modality="image", url=data_url(image))


async def _refused(loader: MediaLoader, media: Media) -> Refused:
    with pytest.raises(Refused) as refused:
        await loader.load(media)
    return refused.value
