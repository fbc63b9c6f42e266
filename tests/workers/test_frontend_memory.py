# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/frontend_memory.py`: an agent of NIXL stands for the frontend, and lends pictures."""

import asyncio
import gc
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from dynamo.common.multimodal.image_loader import ImageLoader
from PIL import Image

from dynamo import nixl_connect
from dynamo.sglang_mm_resume.core.errors import ProtocolError, Reason, Refused, TransferFailed
from dynamo.sglang_mm_resume.core.messages import LOCAL_MEDIA, Media, parse
from dynamo.sglang_mm_resume.workers import frontend_memory
from dynamo.sglang_mm_resume.workers.decoding import PixelsHeld, Unusable
from dynamo.sglang_mm_resume.workers.frontend_decoding import lent_picture
from dynamo.sglang_mm_resume.workers.media import MediaLoader
from dynamo.sglang_mm_resume.workers.request import media_of
from dynamo.sglang_mm_resume.workers.sizes import ImageRule, KnownSizes
from tests.support.pictures import TOKEN_PIXELS, num_tokens, patchwork

LONG_S = 30.0
PICTURE = patchwork(3, 4, 3)


class Frontend:
    """Lends pixels, and describes them as Dynamo's frontend does."""

    def __init__(self) -> None:
        self._connector = nixl_connect.Connector()
        self._lent: list[Any] = []

    async def lend(self, pixels: np.ndarray) -> dict[str, Any]:
        tensor = torch.from_numpy(pixels.copy())
        readable = await self._connector.create_readable(nixl_connect.Descriptor(tensor))
        metadata = readable.metadata()
        [descriptor] = metadata.descriptors
        self._lent += [tensor, readable]
        where = {"addr": descriptor.ptr, "size": descriptor.size, "mem_type": "Dram"}
        return {
            "nixl_metadata": metadata.nixl_metadata,
            "nixl_descriptor": {**where, "device_id": 0},
            "shape": list(pixels.shape),
            "dtype": "UINT8",
            "metadata": {"Image": {"format": None}},
            "content_hash": "57cb7647a3ba1c48",
        }


@pytest.fixture
async def frontend() -> AsyncIterator[Frontend]:
    yield Frontend()


@pytest.fixture
def loader() -> MediaLoader:
    return MediaLoader(ThreadPoolExecutor(2), "model", LONG_S)


async def test_every_kind_of_pixels_is_read(frontend: Frontend, loader: MediaLoader) -> None:
    rgb = np.asarray(PICTURE)
    grey = rgb[..., :1]
    for pixels, expected in (
        (rgb, PICTURE),
        (np.concatenate([rgb, grey], axis=2), PICTURE),  # alpha is dropped
        (grey, Image.fromarray(grey[..., 0]).convert("RGB")),
    ):
        picture = (await loader.load(lent_picture(await frontend.lend(pixels)))).media
        assert picture.mode == "RGB"
        assert picture.tobytes() == expected.tobytes()


async def test_pixels_have_names_of_their_own(frontend: Frontend, loader: MediaLoader) -> None:
    """Not the frontend's, which is no secure hash: a picture could be made to take another's."""
    pixels = np.asarray(PICTURE)
    turned = pixels.reshape(pixels.shape[1], pixels.shape[0], 3)
    other_model = MediaLoader(ThreadPoolExecutor(1), "another model", LONG_S)
    medias = [lent_picture(await frontend.lend(p)) for p in (pixels, pixels, 255 - pixels, turned)]
    keys = [(await loader.fetch(media)).content_hash for media in medias]
    assert keys[0] == keys[1]
    assert len({*keys, (await other_model.fetch(medias[0])).content_hash}) == 4


async def test_a_description_travels_as_it_is(frontend: Frontend) -> None:
    description = await frontend.lend(np.asarray(PICTURE))
    media = lent_picture(description)
    again = Media.model_validate_json(media.model_dump_json())
    assert again == media
    assert again.lent is not None
    assert again.lent.model_dump(mode="json") == description
    assert media.url == "frontend-decoded:57cb7647a3ba1c48"


async def test_a_request_may_have_both_kinds(frontend: Frontend) -> None:
    description = await frontend.lend(np.asarray(PICTURE))
    items = [{"Decoded": description}, {"Url": "https://example.com/p.png"}]
    request = {"token_ids": [5, 5], "multi_modal_data": {"image_url": items}}
    lent, fetched = media_of(request, {"image": 5}, max_items=2)
    assert lent == lent_picture(description)
    assert fetched == Media(modality="image", url="https://example.com/p.png")


async def test_its_tokens_are_known_from_its_shape(frontend: Frontend) -> None:
    media = lent_picture(await frontend.lend(np.asarray(PICTURE)))
    rule = ImageRule(TOKEN_PIXELS, min_pixels=1, max_pixels=2**20)
    assert await KnownSizes(rule).tokens(media) == num_tokens(PICTURE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": [84, 112]},
        {"shape": [84, 0, 3]},
        {"shape": [84, 112, 4]},
        {"dtype": "FLOAT32"},
        {"nixl_descriptor": {"addr": 4096, "size": 1}},
        {"nixl_descriptor": {"addr": 0, "size": 84 * 112 * 3}},
        {"nixl_metadata": None},
    ],
)
async def test_another_description_is_refused(frontend: Frontend, wrong: dict[str, Any]) -> None:
    description = await frontend.lend(np.asarray(PICTURE))
    with pytest.raises(ProtocolError, match="decoded picture"):
        lent_picture(description | wrong)
    with pytest.raises(ProtocolError, match="lent"):
        parse(LOCAL_MEDIA, [{"modality": "image", "url": "x", "lent": description | wrong}])


async def test_pixels_are_bounded(
    frontend: Frontend, loader: MediaLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = PICTURE.width * PICTURE.height
    memory = frontend_memory.FrontendMemory(PixelsHeld(2 * pixels), LONG_S)
    lent = lent_picture(await frontend.lend(np.asarray(PICTURE))).lent
    assert lent is not None
    held = [await memory.picture(lent) for _ in range(2)]
    with pytest.raises(Refused) as refused:
        await memory.picture(lent)
    assert refused.value.reason is Reason.OVERLOADED
    held.clear()
    await memory.picture(lent)
    monkeypatch.setattr(frontend_memory, "MAX_PIXELS", pixels - 1)
    with pytest.raises(Unusable, match="send a smaller one"):
        await memory.picture(lent)


async def test_two_channels_are_no_picture(frontend: Frontend, loader: MediaLoader) -> None:
    media = lent_picture(await frontend.lend(np.asarray(PICTURE)[..., :2]))
    with pytest.raises(Refused, match="2 channels") as refused:
        await loader.load(media)
    assert refused.value.reason is Reason.BAD_REQUEST


# Dynamo's destructors do not expect that a constructor failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_frontend_that_is_gone_is_not_the_client_s_fault(
    frontend: Frontend, loader: MediaLoader
) -> None:
    description = await frontend.lend(np.asarray(PICTURE))
    with pytest.raises(TransferFailed, match="cannot be read"):
        await loader.load(lent_picture(description | {"nixl_metadata": "b64:AAAA"}))
    gc.collect()


async def test_a_read_outlives_its_request(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NIXL may still write into its memory. Only a stand-in can be made to hang for so long."""
    arrived, reading = asyncio.Event(), asyncio.Event()

    async def read(self: ImageLoader, items: list[Any]) -> list[Image.Image]:
        reading.set()
        await arrived.wait()
        return [PICTURE.copy()]

    monkeypatch.setattr(ImageLoader, "load_image_batch", read)
    held = PixelsHeld(PICTURE.width * PICTURE.height)
    lent = lent_picture(await frontend.lend(np.asarray(PICTURE))).lent
    assert lent is not None
    memory = frontend_memory.FrontendMemory(held, timeout_s=0.05)
    with pytest.raises(TransferFailed, match=r"not read within 0\.05 s"):
        await memory.picture(lent)
    patient = frontend_memory.FrontendMemory(held, LONG_S)
    with pytest.raises(Refused):  # the first still counts
        await patient.picture(lent)
    arrived.set()
    await _all_reads()
    arrived.clear()
    reading.clear()
    request = asyncio.ensure_future(patient.picture(lent))
    await reading.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    with pytest.raises(Refused):
        await patient.picture(lent)
    arrived.set()
    await _all_reads()
    await patient.picture(lent)


async def _all_reads() -> None:
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
