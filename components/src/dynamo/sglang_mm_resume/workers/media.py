# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Loads media under Dynamo's own URL policy and names them by content.

Private addresses, redirects and the sizes of downloads and data URLs are ruled by Dynamo's HTTP
client and its `DYN_MM_*` environment variables. What is added: one deadline over all redirects, a
bound on decoded pixels, and refusals that say which item is wrong and what to change, without
repeating a URL that may carry a secret or megabytes. Whatever the bytes of a picture make Pillow
raise is the client's; a lack of memory or of open files is ours.

Nothing is shared between requests, so that a download ends with the request that wanted it.
"""

import asyncio
import base64
import errno
import io
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from dynamo.common.http import (
    HttpConfigurationError,
    HttpError,
    HttpStatusError,
    HttpTimeoutError,
    fetch_bytes,
)
from dynamo.common.http.media_reference import max_media_bytes
from dynamo.common.http.url_validator import (
    UrlValidationPolicy,
    describe_media_source,
    validate_url,
)
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.transport.tasks import in_thread

#: Pixels of one picture, 4 bytes each: where Pillow begins to suspect a decompression bomb.
MAX_PIXELS: Final = 89_478_485
#: Pixels of all pictures that a worker holds at the same time: 4 GiB.
MAX_PIXELS_HELD: Final = 2**30
#: Pictures decoded at the same time. Each may need three times its pixels while it lasts, and
#: threads must be left for copies.
MAX_DECODES: Final = 4

T = TypeVar("T")

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_LACKS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC})
_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[^\s'\"]*")  # user and password, query


class Unusable(Exception):
    """The client's fault; the text says why and what to do, but not of which item."""


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a picture. `key`: 64 hex digits over them and what else decides an embedding."""

    data: bytes = field(repr=False)
    key: str

    @property
    def content_hash(self) -> str:
        """What the engine calls the picture: equal ones share their KV."""
        return self.key[:16]


class MediaLoader:
    """Images by URL."""

    def __init__(self, threads: Executor, identity: str, fetch_timeout_s: float) -> None:
        """`identity` names whatever else decides an embedding: the model and its layout.

        `fetch_timeout_s`: until a picture must have arrived, over all redirects.
        """
        self._threads = threads
        self._identity = identity.encode()
        self._fetch_timeout_s = fetch_timeout_s
        self._policy = UrlValidationPolicy.from_env()
        self._decoding = asyncio.Semaphore(MAX_DECODES)
        self._held = _PixelsHeld(MAX_PIXELS_HELD)

    async def load(self, media: Media) -> Image.Image:
        """The decoded picture, RGB, as SGLang decodes it: no EXIF turn, no alpha.

        Raises `Refused`: BAD_REQUEST says what is wrong, OVERLOADED where too much is held.
        """
        with blaming(media):
            return await self.decode(await self.fetch(media))

    async def fetch(self, media: Media) -> Content:
        """The bytes of the picture. Raises `Unusable`."""
        url = media.url
        try:
            scheme = urlsplit(f"{url.partition(':')[0]}:").scheme
            if scheme in ("", "file"):
                raise Unusable("local file access is not allowed: send a data URL")
            content = await (self._inside(url) if scheme == "data" else self._fetched(url))
        except ValueError as error:  # the URL policy, and whatever parsers of URLs raise
            raise Unusable(str(error)[:300]) from error
        if not content.data:
            raise Unusable("the picture is empty: send the whole file")
        return content

    async def decode(self, content: Content) -> Image.Image:
        """The picture, as of `load`. Raises `Unusable`, or `Refused` as OVERLOADED."""
        async with self._decoding:
            return await self._in_thread(self._decode, content.data)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await in_thread(self._threads, function, *args)

    def _named(self, data: bytes) -> Content:
        return Content(data, sha256(self._identity + data).hexdigest())

    async def _inside(self, url: str) -> Content:
        await validate_url(url, self._policy)
        return await self._in_thread(lambda: self._named(_data_of(url)))

    async def _fetched(self, url: str) -> Content:
        limit_s = self._fetch_timeout_s
        try:
            # Dynamo's own limit begins anew with each redirect.
            async with asyncio.timeout(limit_s):
                data = await fetch_bytes(
                    url, limit_s, policy=self._policy, max_bytes=max_media_bytes()
                )
        except (TimeoutError, HttpTimeoutError) as error:
            raise Unusable(f"did not arrive within {limit_s:g} s: send a data URL") from error
        except HttpStatusError as error:
            raise Unusable(f"its server answered with status {error.status}") from error
        except HttpConfigurationError:
            raise  # the operator's
        except HttpError as error:
            if _is_lack(error.__cause__):
                raise
            raise Unusable("its server could not be reached, or broke off") from error
        return await self._in_thread(self._named, data)

    def _decode(self, content: bytes) -> Image.Image:
        """Raises `Unusable`, or `Refused` as OVERLOADED."""
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError
            give_back = self._held.take(width * height)
            try:
                image.load()
                rgb = image if image.mode == "RGB" else image.convert("RGB")
                weakref.finalize(rgb, give_back)
            except BaseException:
                give_back()
                raise
        except (Refused, MemoryError):
            raise
        except Image.UnidentifiedImageError as error:
            raise Unusable("cannot be decoded: send JPEG, PNG or WebP") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            text = f"the picture has more than {MAX_PIXELS} pixels: send a smaller one"
            raise Unusable(text) from error
        except Exception as error:  # broken data makes Pillow raise almost anything
            if _is_lack(error):
                raise
            text = f"the picture is truncated or damaged ({error!s:.100}): send the whole file"
            raise Unusable(text) from error
        return rgb


@contextmanager
def blaming(media: Media) -> Iterator[None]:
    """Turns `Unusable` into a `Refused` that names the item."""
    try:
        yield
    except Unusable as error:
        text = f"{_label(media.url)}: {_SECRETS.sub('', str(error))}"
        raise Refused(Reason.BAD_REQUEST, text) from error


class _PixelsHeld:
    """How many pixels are in memory, with an end to it. Threads may take and give back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.RLock()  # a collected picture may give back during a `take`

    def take(self, count: int) -> Callable[[], None]:
        """Count in; what is returned counts out, once. Raises `Refused` beyond the limit."""
        with self._lock:
            if self._held + count > self._limit:
                raise Refused(
                    Reason.OVERLOADED,
                    f"pictures of {self._held} pixels are being encoded already: try again later",
                )
            self._held += count
        return lambda: self._give_back(count)

    def _give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


def _data_of(url: str) -> bytes:
    """The bytes in a base64 data URL. White space and escapes (`%2B`) in it are allowed."""
    header, comma, data = url.partition(",")
    media_type, *parameters = header.partition(":")[2].lower().split(";")
    if not comma or not media_type.strip().startswith("image/"):
        raise Unusable("a data URL must be an image: data:image/png;base64,...")
    if "base64" not in parameters:
        raise Unusable("a data URL must be base64: data:image/png;base64,...")
    for escape, character in (("%2B", "+"), ("%2F", "/"), ("%3D", "=")):
        data = data.replace(escape, character).replace(escape.lower(), character)
    try:
        compact = data.encode("ascii").translate(None, b" \t\r\n\f")
        return base64.b64decode(compact, validate=True)
    except ValueError as error:
        raise Unusable(f"the data URL is not valid base64 ({error!s:.100})") from error


def _is_lack(error: BaseException | None) -> bool:
    """Whether this machine has run out of something."""
    return isinstance(error, OSError) and error.errno in _LACKS


def _label(url: str) -> str:
    """What a URL is called in a message: bounded, and without what may be secret."""
    scheme, _, rest = url.partition(":")
    if scheme.strip().lower() == "data":
        return describe_media_source(f"data:{rest}")
    return describe_media_source(_SECRETS.sub("", url))
