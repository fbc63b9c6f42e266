# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/media.py` against broken, strange and malicious pictures and against bad servers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
from dynamo.common.http import close_http_client, url_validator
from dynamo.common.http.url_validator import UrlValidationPolicy
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.workers import media as media_module
from dynamo.sglang_mm_resume.workers.decoding import PixelsHeld
from dynamo.sglang_mm_resume.workers.media import Content, MediaLoader
from tests.support.footprint import peak_mib_of, reset_peak
from tests.support.hostile_media import (
    CASES,
    PAGES,
    PICTURE,
    PNG,
    PRIVATE_HOSTS,
    REFUSED,
    SERVED,
    Case,
    inline,
)
from tests.support.web import Page, serve
from tests.support.worker_status import wait_until

ALLOW_INTERNAL = "DYN_MM_ALLOW_INTERNAL"
DEADLINE_S = 1.0
LONG_S = 30.0
PROMPTLY_S = 5.0
"""Longest that any refusal may take which does not wait for the deadline."""
PREPROCESSED = ("too-long", "too-wide")
"""Decoded like any picture; it is the preprocessor that refuses these."""
LOADED = [case for case in CASES if case.name not in PREPROCESSED]
NOT_ALLOWED = ("blocked", "not allowed", "Could not resolve")
# The picture that claims 81 million pixels takes 4 bytes for each until its data ends.
MAX_GROWTH_MIB = 512


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with serve(PAGES) as url:
        yield url


@pytest.fixture
async def loader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MediaLoader]:
    """One that may use loopback."""
    monkeypatch.setenv(ALLOW_INTERNAL, "1")
    yield MediaLoader(ThreadPoolExecutor(2), "model", LONG_S)
    await close_http_client()


@pytest.fixture
def hasty_loader(loader: MediaLoader) -> MediaLoader:
    """The same, with a deadline that a test can wait for."""
    return MediaLoader(ThreadPoolExecutor(2), "model", DEADLINE_S)


@pytest.fixture
async def strict_loader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MediaLoader]:
    """One with the default policy."""
    monkeypatch.delenv(ALLOW_INTERNAL, raising=False)
    yield MediaLoader(ThreadPoolExecutor(2), "model", LONG_S)
    await close_http_client()


def image(url: str) -> Media:
    return Media(modality="image", url=url)


async def refusal_of(loader: MediaLoader, url: str) -> Refused:
    with pytest.raises(Refused) as refused:
        await loader.load(image(url))
    return refused.value


def test_there_are_many_and_their_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 100


@pytest.mark.parametrize("case", LOADED, ids=lambda case: case.name)
async def test_is_refused_or_decoded(
    loader: MediaLoader, hasty_loader: MediaLoader, web: str, case: Case
) -> None:
    if case.waits:
        loader = hasty_loader
    started_at = time.monotonic()
    if case.served_as is None:
        refused = await refusal_of(loader, case.url(web))
        assert refused.reason is Reason.BAD_REQUEST
        assert case.is_said_in(refused.message), refused.message
    else:
        picture = (await loader.load(image(case.url(web)))).media
        assert isinstance(picture, Image.Image)
        assert picture.mode == "RGB"
        assert picture.size == case.served_as.size
        assert picture.tobytes() == case.served_as.tobytes()
    assert time.monotonic() - started_at < (DEADLINE_S if case.waits else 0) + PROMPTLY_S


async def test_pixels_are_those_of_sglang_in_one_process(loader: MediaLoader) -> None:
    """No turn by EXIF, alpha dropped, 16 bits cut: as the engine decodes for itself."""
    from sglang.srt.managers.schedule_batch import Modality  # takes seconds
    from sglang.srt.multimodal.processors.qwen_vl import QwenVLImageProcessor

    inside = [c.url("") for c in SERVED if c.url("").startswith("data:image/")]
    plain = [url for url in inside if url.isascii() and not set(url) & set("%\r\n ")]
    assert len(plain) > 20
    for url in plain:
        theirs = QwenVLImageProcessor._load_single_item(url, Modality.IMAGE)
        ours = (await loader.load(image(url))).media
        assert isinstance(ours, Image.Image)
        assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.nightly
def test_memory_is_bounded() -> None:
    with serve(PAGES) as web, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        growth = child.submit(_growth_by_refusals, web).result()
    print(f"peak memory grew by {growth} MiB")
    assert growth < MAX_GROWTH_MIB


def _growth_by_refusals(web: str) -> int:
    """MiB that the peak of this process grows by."""
    os.environ[ALLOW_INTERNAL] = "1"

    async def load_all() -> int:
        loader = MediaLoader(ThreadPoolExecutor(4), "model", LONG_S)
        await loader.load(image(inline(PNG)))
        before = reset_peak(os.getpid())
        for case in REFUSED:
            if case.name not in PREPROCESSED and not case.waits:
                await refusal_of(loader, case.url(web))
        await close_http_client()
        return peak_mib_of(os.getpid()) - before

    return asyncio.run(load_all())


async def test_as_many_pixels_as_there_may_be_at_once(
    loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = PICTURE.width * PICTURE.height
    monkeypatch.setattr(loader, "_held", PixelsHeld(2 * pixels))
    url = inline(PNG)
    held = [await loader.load(image(url)) for _ in range(2)]
    refused = await refusal_of(loader, url)
    assert refused.reason is Reason.OVERLOADED
    assert "try again later" in refused.message
    held.pop()
    held.append(await loader.load(image(url)))
    with pytest.raises(Refused):
        await loader.load(image(url))
    held.clear()
    for _ in range(5):  # damaged ones give back, too
        assert "damaged" in (await refusal_of(loader, inline(PNG[: len(PNG) // 2]))).message
    held = [await loader.load(image(url)) for _ in range(2)]


async def test_decoding_leaves_threads_to_others(loader: MediaLoader) -> None:
    """A crowd of pictures does not take all threads: copies need them."""
    threads = ThreadPoolExecutor(media_module.MAX_DECODES + 1)
    crowded = MediaLoader(threads, "model", LONG_S)
    release = threading.Event()
    decoding: list[int] = []

    def decode(content: Content) -> Image.Image:
        decoding.append(len(content.data))
        release.wait(30)
        return PICTURE

    crowded._decode = decode  # type: ignore[method-assign]
    tasks = [asyncio.ensure_future(crowded.load(image(inline(PNG)))) for _ in range(12)]
    try:
        await asyncio.get_running_loop().run_in_executor(
            None, wait_until, lambda: len(decoding) == media_module.MAX_DECODES, 10.0
        )
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().run_in_executor(threads, lambda: "a copy")
        assert len(decoding) == media_module.MAX_DECODES
    finally:
        release.set()
        await asyncio.gather(*tasks)


async def test_a_download_ends_with_its_request(loader: MediaLoader) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/p.png"
        task = asyncio.ensure_future(loader.load(image(url)))
        connection, _ = await loop.run_in_executor(None, listening.accept)
        with connection:
            connection.settimeout(PROMPTLY_S)
            await loop.run_in_executor(None, connection.recv, 4096)
            task.cancel()
            assert await loop.run_in_executor(None, connection.recv, 4096) == b"", "still open"
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_deadline_for_all_redirects(hasty_loader: MediaLoader) -> None:
    """Each of these pages alone comes in time."""
    pages = {f"/{n}": Page(b"", status=302, headers={"Location": f"/{n + 1}"}) for n in range(3)}
    late = {path: replace(page, after_s=0.6 * DEADLINE_S) for path, page in pages.items()}
    with serve(late) as web:
        started_at = time.monotonic()
        refused = await refusal_of(hasty_loader, f"{web}/0")
        assert time.monotonic() - started_at < 1.5 * DEADLINE_S
    assert "did not arrive" in refused.message


# --- Addresses ---


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", PRIVATE_HOSTS)
async def test_private_address_is_never_asked(
    strict_loader: MediaLoader, host: str, scheme: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        refused = await refusal_of(strict_loader, f"{scheme}://{host}:{port}/p.png")
        assert not _was_asked(listening)
    assert refused.reason is Reason.BAD_REQUEST
    assert any(part in refused.message for part in NOT_ALLOWED), refused.message


@pytest.mark.parametrize("host", [host for host in PRIVATE_HOSTS if host.isascii()])
async def test_redirect_to_a_private_address_is_not_followed(
    strict_loader: MediaLoader, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    _call_public(monkeypatch, strict_loader, "127.0.0.2")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        secret = f"http://{host}:{listening.getsockname()[1]}/p.png"
        pages = {
            "/good.png": Page(PNG),
            "/moved": Page(b"", status=302, headers={"Location": "/on"}),
            "/on": Page(b"", status=307, headers={"Location": secret}),
        }
        asked: list[str] = []
        with serve(pages, asked, "127.0.0.2") as web:
            loaded = await strict_loader.load(image(f"{web}/good.png"))
            assert loaded.media.size == PICTURE.size
            refused = await refusal_of(strict_loader, f"{web}/moved")
        assert len(asked) == 3
        assert not _was_asked(listening)
    assert any(part in refused.message for part in NOT_ALLOWED), refused.message


def _call_public(monkeypatch: pytest.MonkeyPatch, loader: MediaLoader, address: str) -> None:
    """A test has no public address of its own; one of loopback stands for it, by plain http."""
    is_blocked = url_validator.is_blocked_ip
    monkeypatch.setattr(url_validator, "is_blocked_ip", lambda ip: ip != address and is_blocked(ip))
    monkeypatch.setattr(loader, "_policy", UrlValidationPolicy(allow_http=True))


def _was_asked(listening: socket.socket) -> bool:
    listening.setblocking(False)
    try:
        listening.accept()[0].close()
    except BlockingIOError:
        return False
    return True
