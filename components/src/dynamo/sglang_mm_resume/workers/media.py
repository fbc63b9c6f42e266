# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Loads media under Dynamo's own URL policy and names them by content.

Private addresses, redirects and the sizes of downloads and data URLs are ruled by Dynamo's HTTP
client and its `DYN_MM_*` environment variables. What is added: one deadline over all redirects, a
bound on decoded pixels (workers/decoding.py), and refusals that say which item is wrong and what to
change, without repeating a URL that may carry a secret or megabytes.

Nothing is shared between requests, so that a download ends with the request that wanted it.
"""

import asyncio
import base64
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

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
    validate_local_path,
    validate_url,
)
from PIL import Image

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.transport.tasks import in_thread
from dynamo.sglang_mm_resume.workers.decoding import (
    FRAMES,
    MAX_PIXELS_HELD,
    Loaded,
    PixelsHeld,
    Unusable,
    Video,
    decode_frames,
    decode_picture,
    is_lack,
    open_video,
)
from dynamo.sglang_mm_resume.workers.frontend_memory import FrontendMemory

#: Pictures decoded at the same time. Each may need three times its pixels while it lasts, and
#: threads must be left for copies.
MAX_DECODES: Final = 4

T = TypeVar("T")

#: How a data URL of each modality begins.
_EXAMPLES: Final = {"image": "data:image/png;base64,...", "video": "data:video/mp4;base64,..."}
_SECRETS = re.compile(r"(?<=://)[^/\s]*@|\?[^\s'\"]*")  # user and password, query


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an item. `content_hash`: as of `content_hash_of`.

    `picture` is there, and `data` is empty, where the frontend has decoded it.
    """

    data: bytes = field(repr=False)
    content_hash: str
    modality: str = "image"
    picture: Image.Image | None = field(default=None, repr=False)


def content_hash_of(identity: str, kind: str, data: bytes) -> str:
    """SHA-256, 64 hex digits, over the bytes of an item and what else decides its embedding.

    `identity`: of the worker, as of `MediaLoader.identity`. `kind`: what the bytes are.
    """
    digest = sha256()
    for part in (identity.encode(), kind.encode(), data):
        digest.update(len(part).to_bytes(8, "big"))  # else other parts could make the same bytes
        digest.update(part)
    return digest.hexdigest()


class MediaLoader:
    """Images and videos by URL."""

    def __init__(
        self,
        threads: Executor,
        identity: str,
        fetch_timeout_s: float,
        video_options: Mapping[str, Any] | None = None,
    ) -> None:
        """`identity`: what decides an embedding beside the item, such as the model and its layout.

        `fetch_timeout_s`: until an item must have arrived, over all redirects. `video_options`:
        those of SGLang that decide how many frames it takes (`--mm-process-config`).
        """
        self._threads = threads
        self.identity = sha256(identity.encode()).hexdigest()
        """Equal on workers that name equal items alike."""
        self._fetch_timeout_s = fetch_timeout_s
        self._video_options = video_options or {}
        self._policy = UrlValidationPolicy.from_env()
        self._decoding = asyncio.Semaphore(MAX_DECODES)
        self._held = PixelsHeld(MAX_PIXELS_HELD)
        self._frontend = FrontendMemory(self._held, fetch_timeout_s)

    async def load(self, media: Media) -> Loaded:
        """The decoded picture, or the video ready to be decoded, with its name.

        Raises `Refused`: BAD_REQUEST says what is wrong, OVERLOADED where too much is held.
        """
        with blaming(media):
            content = await self.fetch(media)
            return Loaded(await self.decode(content), content.content_hash)

    async def fetch(self, media: Media) -> Content:
        """The bytes of the item, asked for once.

        Raises `Unusable`; where they are read from the frontend, `TransferFailed` or `Refused`.
        """
        if media.lent is not None:
            picture = await self._frontend.picture(media.lent)
            return await self._in_thread(self._named_by_pixels, picture)
        try:
            data = await self._bytes_of(media)
        except Unusable:
            raise
        except ValueError as error:  # the URL policy, and whatever parsers of URLs raise
            raise Unusable(str(error)[:300]) from error
        if not data:
            raise Unusable(f"the {media.modality} is empty: send the whole file")
        return await self._in_thread(self._named, data, media.modality)

    async def decode(self, content: Content) -> Image.Image | Video:
        """The picture or video, as of `load`. Raises `Unusable`, or `Refused` as OVERLOADED."""
        if content.picture is not None:
            return content.picture
        async with self._decoding:
            return await self._in_thread(self._decode, content)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await in_thread(self._threads, function, *args)

    def _named(self, data: bytes, modality: str) -> Content:
        return Content(data, content_hash_of(self.identity, modality, data), modality)

    def _named_by_pixels(self, picture: Image.Image) -> Content:
        width, height = picture.size
        kind = f"pixels {picture.mode} {width} {height}"
        name = content_hash_of(self.identity, kind, picture.tobytes())
        return Content(b"", name, picture=picture)

    def _decode(self, content: Content) -> Image.Image | Video:
        if content.data.startswith(FRAMES) and content.modality == "video":
            return decode_frames(content.data, self._held, self._video_options)
        if content.modality == "video":
            return open_video(content.data, self._held, self._video_options)
        return decode_picture(content.data, self._held)

    async def _bytes_of(self, media: Media) -> bytes:
        scheme = urlsplit(f"{media.url.partition(':')[0]}:").scheme
        if scheme == "data":
            await validate_url(media.url, self._policy)
            return await self._in_thread(_data_of, media.url, media.modality)
        if scheme in ("", "file"):
            return await self._in_thread(_read_local, media.url, self._policy)
        return await self._fetched(media.url)

    async def _fetched(self, url: str) -> bytes:
        limit_s = self._fetch_timeout_s
        try:
            # Dynamo's own limit begins anew with each redirect.
            async with asyncio.timeout(limit_s):
                return await fetch_bytes(
                    url, limit_s, policy=self._policy, max_bytes=max_media_bytes()
                )
        except (TimeoutError, HttpTimeoutError) as error:
            raise Unusable(f"did not arrive within {limit_s:g} s: send a data URL") from error
        except HttpStatusError as error:
            raise Unusable(f"its server answered with status {error.status}") from error
        except HttpConfigurationError:
            raise  # the operator's
        except HttpError as error:
            if is_lack(error.__cause__):
                raise
            raise Unusable("its server could not be reached, or broke off") from error


@contextmanager
def blaming(media: Media) -> Iterator[None]:
    """Turns `Unusable` into a `Refused` that names the item."""
    try:
        yield
    except Unusable as error:
        text = f"{_label(media.url)}: {_SECRETS.sub('', str(error))}"
        raise Refused(Reason.BAD_REQUEST, text) from error


def _read_local(url: str, policy: UrlValidationPolicy) -> bytes:
    """The bytes of a file below the folder that the operator allows (`DYN_MM_LOCAL_PATH`).

    Raises `Unusable`, which does not tell of other files whether they exist.
    """
    if not policy.allowed_local_path:
        raise Unusable("local file access is not allowed: send a data URL")
    parsed = urlsplit(url)
    path, limit = unquote(parsed.path) if parsed.scheme else url, max_media_bytes()
    try:
        file = validate_local_path(path, policy)
        if not file.is_file():  # a pipe would hold the thread for ever
            raise ValueError("no file")
        with file.open("rb") as opened:
            data = opened.read(limit + 1)
    except (OSError, ValueError) as error:
        if is_lack(error):
            raise
        raise Unusable("is not a file that may be read (DYN_MM_LOCAL_PATH)") from error
    if len(data) > limit:
        raise Unusable(f"the file exceeds {limit} bytes (DYN_MM_MAX_FILE_SIZE_MB)")
    return data


def _data_of(url: str, modality: str) -> bytes:
    """The bytes in a base64 data URL. White space and escapes (`%2B`) in it are allowed."""
    header, comma, data = url.partition(",")
    media_type, *parameters = header.partition(":")[2].lower().split(";")
    if not comma or not media_type.strip().startswith(f"{modality}/"):
        a_modality = {"image": "an image", "video": "a video"}[modality]
        raise Unusable(f"a data URL must be {a_modality}: {_EXAMPLES[modality]}")
    if "base64" not in parameters:
        raise Unusable(f"a data URL must be base64: {_EXAMPLES[modality]}")
    for escape, character in (("%2B", "+"), ("%2F", "/"), ("%3D", "=")):
        data = data.replace(escape, character).replace(escape.lower(), character)
    try:
        compact = data.encode("ascii").translate(None, b" \t\r\n\f")
        if media_type.strip() == "video/jpeg":
            return FRAMES + compact
        return base64.b64decode(compact, validate=True)
    except ValueError as error:
        raise Unusable(f"the data URL is not valid base64 ({error!s:.100})") from error


def _label(url: str) -> str:
    """What a URL is called in a message: bounded, and without what may be secret."""
    scheme, _, rest = url.partition(":")
    if scheme.strip().lower() == "data":
        return describe_media_source(f"data:{rest}")
    return describe_media_source(_SECRETS.sub("", url))
