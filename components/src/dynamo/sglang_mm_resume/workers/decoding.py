# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a picture or a video to what SGLang's preprocessing takes, within bounds.

Whatever the bytes make Pillow or the video library raise is the client's; a lack of memory or of
open files is ours.
"""

import base64
import errno
import io
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from PIL import Image
from sglang.srt.multimodal.processors.qwen_vl import smart_nframes
from sglang.srt.utils.video_decoder import VideoDecoderWrapper

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.video_library import INSTALL

#: Pixels of one picture, 4 bytes each: where Pillow begins to suspect a decompression bomb.
MAX_PIXELS: Final = 89_478_485
#: Pixels of all frames that are taken of one video, 3 bytes each: four minutes of 1280 by 720.
MAX_VIDEO_PIXELS: Final = 2**29
#: Pixels of all pictures and videos that a worker holds at the same time: 4 GiB.
MAX_PIXELS_HELD: Final = 2**30

#: Frames a second that SGLang takes of a video unless told otherwise.
SAMPLED_FPS: Final = 2.0
#: How the bytes of a video begin that is a sequence of pictures, each in base64.
FRAMES: Final = b"data:video/jpeg;base64,"

T = TypeVar("T")

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_LACKS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC})


class Unusable(ValueError):
    """The client's fault; the text says why and what to do, but not of which item."""


class Video(VideoDecoderWrapper):
    """SGLang's reader of a video, whose frames are decoded when it asks for them.

    What it cannot decode raises `Unusable`, also where the library is missing: a client can send
    frames instead, and no other status lets it read why.
    """

    def __init__(self, data: bytes) -> None:
        with _of_bad_video():
            super().__init__(data)

    def get_frames_as_tensor(self, indices: list[int]) -> Any:
        """`(frames, height, width, 3)`, uint8. Takes long: not for an event loop."""
        with _of_bad_video():
            return super().get_frames_as_tensor(indices)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A picture or a video, and its `content_hash`: 64 hex digits that no other content has."""

    media: Image.Image | Video
    content_hash: str


class Frames(Video):
    """Pictures that are a video: all of them, at the rate at which SGLang takes frames."""

    def __init__(self, frames: torch.Tensor, fps: float) -> None:
        """`frames`: `(an even number, height, width, 3)`, uint8."""
        self._frames = frames
        self._fps = fps

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def avg_fps(self) -> float:
        return self._fps

    @property
    def frame_shape(self) -> tuple[int, int]:
        return int(self._frames.shape[1]), int(self._frames.shape[2])

    def get_frames_as_tensor(self, indices: list[int]) -> torch.Tensor:
        """As of `Video`."""
        return self._frames[indices]


class PixelsHeld:
    """How many pixels are in memory, with an end to it. Threads may take and give back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.RLock()  # a collected picture may give back during a `take`

    @contextmanager
    def during_life_of(self, count: int) -> Iterator[Callable[[T], T]]:
        """Counts pixels in until what is passed to the function is collected, or the block fails.

        Raises `Refused` beyond the limit.
        """
        give_back = self._take(count)

        def keep(holder: T) -> T:
            weakref.finalize(holder, give_back)
            return holder

        try:
            yield keep
        except BaseException:
            give_back()
            raise

    def _take(self, count: int) -> Callable[[], None]:
        with self._lock:
            if self._held + count > self._limit:
                raise Refused(
                    Reason.OVERLOADED,
                    f"media of {self._held} pixels are being encoded already: try again later",
                )
            self._held += count
        return lambda: self._give_back(count)

    def _give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


def decode_picture(data: bytes, held: PixelsHeld) -> Image.Image:
    """RGB, as SGLang decodes it: no EXIF turn, no alpha.

    Raises `Unusable`, or `Refused` as OVERLOADED.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise Image.DecompressionBombError
        with held.during_life_of(pixels) as keep:
            image.load()
            return keep(image if image.mode == "RGB" else image.convert("RGB"))
    except (Refused, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise Unusable("cannot be decoded: send JPEG, PNG or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        text = f"the picture has more than {MAX_PIXELS} pixels: send a smaller one"
        raise Unusable(text) from error
    except Exception as error:  # broken data makes Pillow raise almost anything
        if is_lack(error):
            raise
        text = f"the picture is truncated or damaged ({error!s:.100}): send the whole file"
        raise Unusable(text) from error


def open_video(data: bytes, held: PixelsHeld, options: Mapping[str, Any]) -> Video:
    """A video whose frames are bounded; `options` are those of SGLang's choice of frames.

    Raises `Unusable`, or `Refused` as OVERLOADED.
    """
    video = Video(data)
    height, width = video.frame_shape
    pixels = height * width * _num_frames(video, options)
    if height * width > MAX_PIXELS or pixels > MAX_VIDEO_PIXELS:
        text = f"the frames to look at have more than {MAX_VIDEO_PIXELS} pixels: "
        raise Unusable(text + "send a shorter or smaller video")
    with held.during_life_of(pixels) as keep:
        return keep(video)


def decode_frames(data: bytes, held: PixelsHeld, options: Mapping[str, Any]) -> Frames:
    """A video from the text of a `data:video/jpeg` URL; otherwise as of `open_video`."""
    files = data.removeprefix(FRAMES).split(b",")
    pictures: list[Image.Image] = []
    for i, file in enumerate(files):
        try:
            pictures.append(decode_picture(base64.b64decode(file, validate=True), held))
            if pictures[i].size != pictures[0].size:
                raise Unusable("is of another size than the first: send frames of one size")
        except ValueError as error:  # `Unusable` is one
            raise Unusable(f"frame {i + 1}: {error!s:.200}") from error
        if (i + 1) * pictures[0].width * pictures[0].height > MAX_VIDEO_PIXELS:
            raise Unusable(f"the frames have more than {MAX_VIDEO_PIXELS} pixels: send fewer")
    pictures += pictures[-1:] * (len(pictures) % 2)  # SGLang takes two at a time
    frames = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    with held.during_life_of(frames.numel() // 3) as keep:
        return keep(Frames(frames, float(options.get("fps") or SAMPLED_FPS)))


def is_lack(error: BaseException | None) -> bool:
    """Whether this machine has run out of something."""
    return isinstance(error, OSError) and error.errno in _LACKS


def _num_frames(video: Video, options: Mapping[str, Any]) -> int:
    """Frames that SGLang will take of this video."""
    total, fps = len(video), video.avg_fps
    if total < 2 or not fps:
        raise Unusable(f"the video has {total} frame(s), {fps or 0:g} a second: send an image")
    try:
        return int(smart_nframes(dict(options), total, fps))
    except ValueError as error:
        raise Unusable(f"the video cannot be used ({error!s:.200}): send a longer one") from error


@contextmanager
def _of_bad_video() -> Iterator[None]:
    """The video library raises `RuntimeError` for whatever it does not understand."""
    try:
        yield
    except ImportError as error:
        text = "compressed videos cannot be decoded by this server: send frames "
        raise Unusable(f"{text}(data:video/jpeg), or have its operator {INSTALL}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        text = f"the video cannot be decoded ({_last_words(error)}): send MP4, WebM or another "
        raise Unusable(text + "format that FFmpeg knows") from error


def _last_words(error: Exception) -> str:
    """What a library says, without where in its sources it says so."""
    return str(error).rpartition(", ")[2][:100]
