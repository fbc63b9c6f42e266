# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that are broken, strange or meant to do harm, and what must become of each.

A case is refused with a text that says what to change, or served as a certain picture. The cases
are for a loader that may use loopback; addresses that it may never use are a list of their own.
"""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tests.support.pictures import patchwork
from tests.support.web import Page

MIB = 1024 * 1024
BOMB_BYTES = 384 * MIB
"""What a bomb becomes that nobody stops."""
SECRET = "hunter2"
"""A password in a URL; it must not come back."""


@dataclass(frozen=True)
class Case:
    """One picture of a request."""

    name: str
    url: Callable[[str], str]
    """The URL, given the root of a web server with `PAGES`."""
    says: Sequence[str] = ()
    """Parts of the refusal; of each pair joined by `|` one suffices."""
    served_as: Image.Image | None = None
    """The picture that must be seen instead, RGB."""
    waits: bool = False
    """The refusal comes only at the deadline for loading."""
    frontend_says: str | None = None
    """Dynamo's frontend refuses it by itself, in these words: no worker sees the request."""

    def is_said_in(self, message: str) -> bool:
        """Whether a refusal says what it must, without what it must not repeat."""
        said = all(any(part in message for part in says.split("|")) for says in self.says)
        return said and SECRET not in message and len(message) < 600


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> Image.Image:
    """What Pillow makes of a file, for formats that lose something."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def inline(content: bytes, media_type: str = "image/png") -> str:
    """A data URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(
    width: int, height: int, rows: bytes, *before: bytes, bits: int = 8, colour: int = 2
) -> bytes:
    """A PNG made by hand: what Pillow would not write. `rows` each begin with a filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *before, _chunk(b"IDAT", zlib.compress(rows, 9))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + _chunk(b"IEND", b"")


def _zeros_compressed(size: int) -> bytes:
    """`size` zeros, in a thousandth of that; never in memory at once."""
    compressor = zlib.compressobj(9)
    parts = [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, compressor.flush()])


def _without_idat_checksum(content: bytes) -> bytes:
    start = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[start - 4 : start])
    end = start + 4 + length
    return content[:end] + b"\0\0\0\0" + content[end + 4 :]


def _with_size(content: bytes, width: int, height: int) -> bytes:
    """The same PNG with another size in its header, which has the right checksum."""
    old = content[16:29]
    header = struct.pack(">II", width, height) + old[8:]
    return content[:8] + _chunk(b"IHDR", header) + content[33:]


def _jpeg_with_size(content: bytes, width: int, height: int) -> bytes:
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


PICTURE = patchwork(3, 4, 4)
OTHER = patchwork(4, 4, 4)
PNG = encoded(PICTURE)
JPEG = encoded(PICTURE, "JPEG", quality=90)
WEBP = encoded(PICTURE, "WEBP", quality=90)
PIXELS = np.asarray(PICTURE)
GRAY = PICTURE.convert("L")

# --- What must be served ---

_ALPHA = Image.fromarray(np.tile(np.arange(112, dtype=np.uint8) * 2, (112, 1)))
_WITH_ALPHA = PICTURE.copy()
_WITH_ALPHA.putalpha(_ALPHA)
_GRAY_ALPHA = Image.merge("LA", (GRAY, _ALPHA))
_PALETTE = PICTURE.quantize(64)
_DEEP = np.asarray(GRAY).astype(np.uint16) * 257
_DEEP_PNG = encoded(Image.fromarray(_DEEP))
_DEEP_RGB_ROWS = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype("u2") * 257)
_DEEP_RGB = png(*PICTURE.size, _DEEP_RGB_ROWS, bits=16)
_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_CMYK = encoded(PICTURE.convert("CMYK"), "JPEG", quality=90)
_ANIMATED = {"save_all": True, "append_images": [OTHER], "duration": 100}
_ICC_OF_NOBODY = encoded(PICTURE, icc_profile=b"no profile")
_LONG = patchwork(5, 1, 60)
_BOMB = _zeros_compressed(BOMB_BYTES)
_ENDLESS_IDAT = PNG[:33] + _chunk(b"IDAT", _BOMB) + _chunk(b"IEND", b"")


def _served(name: str, content: bytes, picture: Image.Image, media_type: str = "image/png") -> Case:
    return Case(name, lambda _: inline(content, media_type), served_as=picture.convert("RGB"))


def _served_lossy(name: str, content: bytes, media_type: str) -> Case:
    return _served(name, content, decoded(content), media_type)


_B64 = base64.b64encode(PNG).decode("ascii")
_ESCAPED = _B64.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")

SERVED = [
    _served("png", PNG, PICTURE),
    _served("1x1", encoded(Image.new("RGB", (1, 1), "red")), Image.new("RGB", (1, 1), "red")),
    _served("1x60-tokens", encoded(_LONG), _LONG),
    _served("gray", encoded(GRAY), GRAY),
    _served("gray-with-alpha", encoded(_GRAY_ALPHA), GRAY),
    _served("alpha", encoded(_WITH_ALPHA), PICTURE),
    _served("palette", encoded(_PALETTE), _PALETTE),
    _served("palette-with-transparency", encoded(_PALETTE, transparency=3), _PALETTE),
    _served("one-bit", encoded(GRAY.convert("1")), GRAY.convert("1")),
    _served_lossy("16-bit-gray", _DEEP_PNG, "image/png"),
    _served("16-bit-colour", _DEEP_RGB, PICTURE),
    _served("animated-png", encoded(PICTURE, **_ANIMATED), PICTURE),
    _served("broken-icc-profile", _ICC_OF_NOBODY, PICTURE),
    _served("wrong-idat-checksum", _without_idat_checksum(PNG), PICTURE),
    _served("bytes-after-the-end", PNG + b"<script>" * 1000, PICTURE),
    # More pixels than the header says: the rest is never looked at.
    _served("bomb-in-the-pixels", _ENDLESS_IDAT, Image.new("RGB", PICTURE.size)),
    _served("says-it-is-a-jpeg", PNG, PICTURE, "image/jpeg"),
    _served_lossy("jpeg", JPEG, "image/jpeg"),
    _served_lossy("progressive-jpeg", encoded(PICTURE, "JPEG", progressive=True), "image/jpeg"),
    _served_lossy("gray-jpeg", encoded(GRAY, "JPEG"), "image/jpeg"),
    _served_lossy("cmyk-jpeg", _CMYK, "image/jpeg"),
    _served(
        "turned-by-exif",
        encoded(PICTURE, "JPEG", quality=90, exif=_TURNED),
        decoded(JPEG),
        "image/jpeg",
    ),
    _served(
        "several-pictures-in-a-jpeg",
        encoded(PICTURE, "MPO", quality=90, save_all=True, append_images=[OTHER]),
        decoded(encoded(PICTURE, "MPO", quality=90)),
        "image/jpeg",
    ),
    _served("lossless-webp", encoded(PICTURE, "WEBP", lossless=True), PICTURE, "image/webp"),
    _served_lossy("lossy-webp", WEBP, "image/webp"),
    _served("animated-webp", encoded(PICTURE, "WEBP", lossless=True, **_ANIMATED), PICTURE),
    Case("upper-case-scheme", lambda _: f"DATA:image/png;base64,{_B64}", served_as=PICTURE),
    Case(
        "line-breaks-in-base64",
        lambda _: f"data:image/png;base64,{_B64[:76]}\r\n{_B64[76:]}\n",
        served_as=PICTURE,
    ),
    Case("spaces-in-base64", lambda _: f"data:image/png;base64, {_B64} ", served_as=PICTURE),
    Case("escapes-in-base64", lambda _: f"data:image/png;base64,{_ESCAPED}", served_as=PICTURE),
    Case("from-the-web", lambda web: f"{web}/good.png", served_as=PICTURE),
    Case("says-it-is-a-page", lambda web: f"{web}/says-html.png", served_as=PICTURE),
    Case("redirected", lambda web: f"{web}/moved", served_as=PICTURE),
    Case("compressed-on-the-way", lambda web: f"{web}/gzipped.png", served_as=PICTURE),
    Case(
        "password-in-the-url",
        lambda web: web.replace("//", f"//me:{SECRET}@") + "/good.png",
        served_as=PICTURE,
    ),
]

# --- What must be refused ---

_NOT_DECODED = ("send JPEG, PNG or WebP",)
_DAMAGED = ("truncated or damaged", "send the whole file")
_TOO_LARGE = ("pixels", "send a smaller one")
_EMPTY = ("empty",)
_BASE64 = ("base64",)
_IMAGE_TYPE = ("must be an image",)
_UNREACHABLE = ("could not be reached",)
_LOCAL = ("local file access is not allowed",)
_SLOW = ("did not arrive within",)
_NO_URL = "Failed to deserialize the JSON body"
_NOT_FETCHED = "Invalid request"  # on its own search for the size of the picture

_SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
_HTML = b"<!doctype html><html><body>no picture</body></html>"
_HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
_BIG_TEXT = _chunk(b"zTXt", b"Comment\0\0" + _BOMB)
_BIG_PROFILE = _chunk(b"iCCP", b"icc\0\0" + _BOMB)
_MANY_TEXTS = [_chunk(b"zTXt", b"Comment\0\0" + _zeros_compressed(MIB))] * 200
_ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)
_ANIMATED_MANY = {"save_all": True, "append_images": [OTHER] * 3}


def _refused(name: str, content: bytes, says: Sequence[str], media_type: str = "image/png") -> Case:
    return Case(name, lambda _: inline(content, media_type), says)


def _at(
    name: str,
    path: str,
    says: Sequence[str],
    waits: bool = False,
    frontend_says: str | None = None,
) -> Case:
    return Case(name, lambda web: f"{web}/{path}", says, None, waits, frontend_says)


def _url(name: str, url: str, says: Sequence[str], frontend_says: str | None = None) -> Case:
    return Case(name, lambda _: url, says, frontend_says=frontend_says)


REFUSED = [
    # Not pictures, or not of the formats that are taken.
    _refused("text", b"not a picture", _NOT_DECODED),
    _refused("html", _HTML, _NOT_DECODED),
    _refused("svg", _SVG, _NOT_DECODED, "image/svg+xml"),
    _refused("pdf", encoded(PICTURE, "PDF"), _NOT_DECODED),
    _refused("gif", encoded(PICTURE, "GIF"), _NOT_DECODED, "image/gif"),
    _refused("animated-gif", encoded(PICTURE, "GIF", **_ANIMATED_MANY), _NOT_DECODED, "image/gif"),
    _refused("bmp", encoded(PICTURE, "BMP"), _NOT_DECODED, "image/bmp"),
    _refused("tiff", encoded(PICTURE, "TIFF"), _NOT_DECODED, "image/tiff"),
    _refused("ico", encoded(PICTURE, "ICO"), _NOT_DECODED, "image/x-icon"),
    _refused("heic", _HEIC, _NOT_DECODED, "image/heic"),
    _refused("eps", encoded(PICTURE, "EPS"), _NOT_DECODED, "image/eps"),
    _refused("nothing-but-zeros", bytes(4096), _NOT_DECODED),
    _refused("empty-data", b"", _EMPTY),
    # Damaged.
    _refused("png-cut-in-its-signature", PNG[:6], _NOT_DECODED),
    _refused("png-cut-in-its-header", PNG[:20], _DAMAGED),
    _refused("png-without-pixels", PNG[:33], _NOT_DECODED),
    _refused("png-cut-in-its-pixels", PNG[: len(PNG) // 2], _DAMAGED),
    _refused("png-with-wrong-checksum", PNG[:29] + b"\0\0\0\0" + PNG[33:], _NOT_DECODED),
    _refused("png-with-broken-pixels", PNG[:60] + b"\xff" * 40 + PNG[100:], _DAMAGED),
    _refused("png-without-size", _with_size(PNG, 0, 0), ("send",)),
    _refused("png-says-larger", _with_size(PNG, 640, 640), _DAMAGED),
    _refused("jpeg-cut-in-its-header", JPEG[:30], ("send",), "image/jpeg"),
    _refused("jpeg-cut-in-its-pixels", JPEG[: len(JPEG) // 2], _DAMAGED, "image/jpeg"),
    _refused("webp-cut-in-its-header", WEBP[:20], ("send",), "image/webp"),
    _refused("webp-cut-in-its-pixels", WEBP[: len(WEBP) // 2], ("send",), "image/webp"),
    # Of impossible sizes.
    _refused("too-long", encoded(Image.new("RGB", (28, 7000))), ("aspect ratio",)),
    _refused("too-wide", encoded(Image.new("RGB", (6000, 1))), ("aspect ratio",)),
    _refused("30000-pixels-wide", encoded(Image.new("L", (30_000, 8_000))), _TOO_LARGE),
    _refused("30000-by-30000", _with_size(PNG, 30_000, 30_000), _TOO_LARGE),
    _refused("png-says-2-to-the-31", _with_size(PNG, 2**31 - 1, 2**31 - 1), ("send",)),
    _refused("png-says-144-megapixels", _with_size(PNG, 12_000, 12_000), _TOO_LARGE),
    _refused("png-says-81-megapixels", _with_size(PNG, 9_000, 9_000), _DAMAGED),
    _refused("jpeg-says-huge", _jpeg_with_size(JPEG, 65_500, 65_500), _TOO_LARGE, "image/jpeg"),
    # Bombs beside the pixels.
    _refused("bomb-in-a-text", png(*PICTURE.size, _ROWS, _BIG_TEXT), _DAMAGED),
    _refused("bomb-of-many-texts", png(*PICTURE.size, _ROWS, *_MANY_TEXTS), _DAMAGED),
    _refused("bomb-in-the-profile", png(*PICTURE.size, _ROWS, _BIG_PROFILE), _DAMAGED),
    # Data URLs.
    _url("no-comma", "data:image/png;base64", _IMAGE_TYPE),
    _url("empty-data-url", "data:,", _IMAGE_TYPE),
    _url("no-media-type", f"data:;base64,{_B64}", _IMAGE_TYPE),
    _url("another-media-type", f"data:text/plain;base64,{_B64}", _IMAGE_TYPE),
    _url("no-base64-mark", "data:image/png,hello", ("must be base64",)),
    _url("no-base64-at-all", "data:image/png;base64,@@@@", _BASE64),
    _url("not-even-ascii", "data:image/png;base64,äöü", _BASE64),
    _url("padding-is-missing", f"data:image/png;base64,{_B64.rstrip('=')[:-1]}", _BASE64),
    _url("too-much-padding", f"data:image/png;base64,{_B64}====", _BASE64),
    _url("base64-of-urls", "data:image/png;base64,iVBORw0KGgo-_-_-", _BASE64),
    Case("17-mib", lambda _: inline(bytes(13 * MIB)), ("exceeds|Invalid",)),
    # Other schemes, and URLs that are none.
    _url("file", "file:///etc/passwd", _LOCAL),
    _url("file-in-capitals", "FILE:///etc/passwd", _LOCAL),
    _url("file-of-a-host", "file://localhost/etc/passwd", _LOCAL),
    _url("bare-path", "/etc/passwd", _LOCAL, _NO_URL),
    _url("relative-path", "../../etc/passwd", _LOCAL, _NO_URL),
    _url("ftp", "ftp://example.com/p.png", ("'ftp' not allowed",)),
    _url("gopher", "gopher://127.0.0.1:6379/_INFO", ("'gopher' not allowed",)),
    _url("javascript", "javascript:alert(1)", ("'javascript' not allowed",)),
    _url("no-host", "http:///p.png", ("no host|could not be reached",)),
    _url("port-out-of-range", "http://127.0.0.1:99999/p.png", _UNREACHABLE, _NO_URL),
    _url("half-an-ipv6-address", "http://[::1/p.png", ("Invalid IPv6 URL",), _NO_URL),
    _url("unknown-host-in-unicode", "http://bücher.invalid/p.png", _UNREACHABLE),
    _url("host-too-long", f"http://{'a' * 300}.invalid/p.png", ("reached|label",)),
    _url("nobody-listens", "http://127.0.0.1:9/p.png", _UNREACHABLE),
    # Servers.
    _at("answers-401", "401", ("status 401",)),
    _at("answers-404", "missing.png", ("missing.png", "status 404")),
    _at("answers-429", "429", ("status 429",)),
    _at("answers-500", "500", ("status 500",)),
    _at("answers-204", "204", _EMPTY),
    _at("answers-304", "304", _EMPTY),
    _at("answers-nothing", "empty.png", _EMPTY),
    _at("answers-with-a-page", "page.html", _NOT_DECODED),
    _at("page-that-says-png", "page.png", _NOT_DECODED),
    _at("sends-less-than-it-says", "less", _UNREACHABLE),
    _at("sends-more-than-it-says", "more", ("damaged|reached",)),
    _at("says-gzip-but-is-not", "no-gzip", _UNREACHABLE),
    _at("bomb-on-the-way", "bomb", ("byte download limit|reached",)),
    _at("redirects-in-a-loop", "loop", ("Too many redirects",), frontend_says=_NOT_FETCHED),
    _at("redirects-to-a-file", "to-file", ("'file' not allowed",)),
    _at("redirects-to-ftp", "to-ftp", ("'ftp' not allowed",), frontend_says=_NOT_FETCHED),
    _at("redirects-to-data", "to-data", _UNREACHABLE),
    _at("redirects-to-no-host", "to-nothing", ("Too many redirects",)),
    _at("redirects-nowhere", "nowhere", _NOT_DECODED),
    _at("never-stops-sending", "endless", ("byte download limit",)),
    Case(
        "password-for-a-page-that-is-missing",
        lambda web: web.replace("//", f"//me:{SECRET}@") + f"/missing.png?token={SECRET}",
        ("missing.png", "status 404"),
    ),
    Case(
        "password-for-a-page-without-end",
        lambda web: web.replace("//", f"//me:{SECRET}@") + "/endless",
        ("byte download limit",),
    ),
    _at("sends-nothing", "silent", _SLOW, waits=True),
    _at("stops-half-way", "stalls", _SLOW, waits=True),
    _at("sends-a-byte-now-and-then", "drips", _SLOW, waits=True),
    _at("redirects-to-a-silent-server", "to-silent", _SLOW, waits=True),
]


def _moved(to: str) -> Page:
    return Page(b"", "text/plain", 302, {"Location": to})


PAGES = {
    "/good.png": Page(PNG),
    "/says-html.png": Page(PNG, "text/html"),
    "/gzipped.png": Page(gzip.compress(PNG), headers={"Content-Encoding": "gzip"}),
    "/401": Page(b"who are you?", "text/plain", 401, {"WWW-Authenticate": "Basic"}),
    "/429": Page(b"later", "text/plain", 429),
    "/500": Page(b"broken", "text/plain", 500),
    "/204": Page(b"", status=204),
    "/304": Page(b"", status=304),
    "/empty.png": Page(b""),
    "/page.html": Page(_HTML, "text/html"),
    "/page.png": Page(_HTML),
    "/less": Page(PNG, headers={"Content-Length": str(len(PNG) + 1000)}),
    "/more": Page(PNG, headers={"Content-Length": str(len(PNG) // 2)}),
    "/no-gzip": Page(PNG, headers={"Content-Encoding": "gzip"}),
    "/bomb": Page(_BOMB, headers={"Content-Encoding": "deflate"}),
    "/moved": _moved("/good.png"),
    "/loop": _moved("/loop"),
    "/to-file": _moved("file:///etc/passwd"),
    "/to-ftp": _moved("ftp://example.com/p.png"),
    "/to-data": _moved(inline(PNG)),
    "/to-nothing": _moved("http://"),
    "/nowhere": Page(_HTML, "text/html", 302),
    "/to-silent": _moved("/silent"),
    "/silent": Page(b"", manner="silent"),
    "/stalls": Page(PNG[:100], manner="stalls"),
    "/drips": Page(PNG, manner="drips"),
    "/endless": Page(PNG + bytes(MIB), manner="endless"),
}

CASES = [*SERVED, *REFUSED]

# --- Addresses that nobody may fetch from unless the operator allows it ---

PRIVATE_HOSTS = [
    "127.0.0.1", "127.1", "127.0.0.1.", "0.0.0.0", "0", "2130706433", "0x7f000001", "0x7f.1",
    "017700000001", "0177.0.0.1", "localhost", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[fe80::1]", "[fd00::1]", "10.0.0.1", "172.16.0.1", "192.168.0.1",
    "169.254.169.254", "100.64.0.1", "198.18.0.1", "metadata.google.internal", "metadata",
    "①②⑦.⓪.⓪.①",
]  # fmt: skip
