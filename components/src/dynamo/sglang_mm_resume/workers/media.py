# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Loads media under Dynamo's own URL policy and names them by content.

Fetching, size limits, redirects and private addresses are Dynamo's `ImageLoader`: the same
environment variables rule here as everywhere in Dynamo. What is added are error texts that say
which item is wrong and why, without repeating a URL that may carry a secret or megabytes.
"""

import asyncio
import hashlib
import logging
import re
from concurrent.futures import Executor

from dynamo.common.http.base import HttpStatusError
from dynamo.common.multimodal import image_loader
from dynamo.common.multimodal.image_loader import ImageLoader
from dynamo.common.multimodal.media_source import describe_media_source
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media

_DATA_URL = re.compile(r"data:[^\s'\"]{80,}")


class ShortenUrls(logging.Filter):
    """Dynamo's loader quotes the URL of a picture that it cannot load. A data URL is the picture
    itself: megabytes, and nobody else's business.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        shortened = _DATA_URL.sub(lambda url: f"data:… ({len(url.group())} characters)", message)
        if shortened != message:
            record.msg, record.args = shortened, ()
        return True


class MediaLoader:
    """Images by URL."""

    def __init__(self, threads: Executor, identity: str) -> None:
        """`identity` names whatever else decides an embedding: the model and its layout."""
        self._images = ImageLoader()
        logging.getLogger(image_loader.__name__).addFilter(ShortenUrls())
        self._threads = threads
        self._identity = identity.encode()

    async def load(self, media: Media) -> Image.Image:
        """The decoded picture, RGB. Raises `Refused` (BAD_REQUEST) saying what is wrong."""
        try:
            return await self._images.load_image(media.url)
        except HttpStatusError as error:
            raise _refused(media, _status_text(error)) from error
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # our own machine's trouble, such as too many open files
            raise _refused(media, _without_url(str(error), media.url)) from error

    async def content_hash(self, image: Image.Image) -> str:
        """Sixteen hex digits over the pixels and the model: equal pictures share their KV."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._hash, image)

    def _hash(self, image: Image.Image) -> str:
        digest = hashlib.sha256(self._identity)
        digest.update(repr((image.mode, image.size)).encode())
        digest.update(image.tobytes())
        return digest.hexdigest()[:16]


def _refused(media: Media, why: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"{describe_media_source(media.url)}: {why}")


def _status_text(error: HttpStatusError) -> str:
    if error.status == 415:
        return "not a picture that can be decoded: send JPEG, PNG or WebP"
    if "truncated" in error.message:
        return "the picture is truncated or damaged: send the whole file"
    if error.status == 408:
        return "its server did not answer in time"
    if error.status == 400:
        return "its server could not be reached"
    return f"its server answered with status {error.status}"


def _without_url(text: str, url: str) -> str:
    """Upstream's messages quote the URL; a data URL would be megabytes of it."""
    return text.replace(url, "the URL").replace("'the URL'", "the URL")[:300]
