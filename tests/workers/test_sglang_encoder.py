# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/sglang_encoder.py`, as far as it needs no tower."""

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

from dynamo.sglang_mm_resume.workers.decoding import Video
from dynamo.sglang_mm_resume.workers.sglang_encoder import VisionEncoder


class Unopened(Video):
    """Never read: its request ends before."""

    def __init__(self) -> None:
        pass


async def test_a_video_that_is_given_up_in_the_queue_leaves_no_coroutine() -> None:
    encoder = VisionEncoder.__new__(VisionEncoder)  # without a tower
    encoder._videos = ThreadPoolExecutor(1)
    may_end = threading.Event()
    encoder._videos.submit(may_end.wait)
    waiting = asyncio.ensure_future(encoder.prepare(Unopened()))
    await asyncio.sleep(0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        may_end.set()
        encoder._videos.shutdown()
        gc.collect()
    assert [str(warning.message) for warning in seen] == []
