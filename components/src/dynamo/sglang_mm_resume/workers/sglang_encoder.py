# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""All that is used of SGLang's vision encoder, private names included.

The tower runs in one thread of its own, so that health checks, cancellation and control messages
go on while it works (R15). The names are guarded by tests/workers/test_upstream_names.py.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final

import torch
from dynamo.sglang._compat import get_mm_encoder_class, publish_server_args
from dynamo.sglang.request_handlers.multimodal.encode_worker_handler import (
    _install_load_video_passthrough,
)
from PIL import Image
from sglang.srt.disaggregation.encoder.server import MMError
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.plugins import load_plugins

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.workers.batches import Batches
from dynamo.sglang_mm_resume.workers.decoding import Unusable, Video
from dynamo.sglang_mm_resume.workers.gpus import gpus_of_towers, threads_on
from dynamo.sglang_mm_resume.workers.towers import Place, Towers

#: Pictures that a GPU's tower takes at once. On a CPU they go one by one: attention over a batch is
#: masked there, and eight pictures of 224 px took twelve times as long together as singly.
GPU_BATCH: Final = 8
#: Tokens of a batch, so that its activations stay those of one large picture.
MAX_BATCH_TOKENS: Final = 4096
#: Videos that are decoded and preprocessed at the same time.
MAX_VIDEOS: Final = 2
#: Frames a second that SGLang's engine takes a video of Qwen2.5-VL for, whatever it has: it does
#: not pass the rate on, and this is what transformers then assumes. Its encoder says 2. Positions
#: depend on it, so that we must say what the engine would.
ENGINE_FPS: Final = 24.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed item: its size is known, the tower has not run."""

    total_tokens: int
    grid: tuple[int, int, int]  # (t, h, w) in patches
    context: Any  # SGLang's EncodeContext
    timestamps: tuple[float, ...] = ()
    second_per_grid: float | None = None


class VisionEncoder:
    """SGLang's `MMEncoder`: the vision tower without the language model."""

    def __init__(self, server_args: Any, num_threads: int, max_batch: int | None = None) -> None:
        """`max_batch`: pictures that the tower takes at once; `None`: by its device."""
        # SGLang reads the sizes of its loading and preprocessing pools from these.
        os.environ.setdefault("SGLANG_ENCODER_MM_LOAD_WORKERS", str(num_threads))
        os.environ.setdefault("SGLANG_ENCODER_PREPROC_WORKERS", str(num_threads))
        _install_load_video_passthrough()  # of videos that are open already
        make_encoder = partial(_make_encoder, server_args)
        self._towers = Towers(make_encoder, server_args.tp_size, server_args.dp_size)
        self._encoder = make_encoder(self._towers.first)
        self._towers.lead(self._encoder.model)
        self.lost = self._towers.lost
        threads = partial(threads_on, self._encoder.device, self._encoder.gpu_id)
        self._tower: ThreadPoolExecutor = threads(self._towers.dp_size, "vision-tower")
        self._videos: ThreadPoolExecutor = threads(MAX_VIDEOS, "video")
        # With SGLANG_ENCODER_IMAGE_PROCESSOR_USE_GPU, images are preprocessed on "cuda".
        self._encoder.preprocessor.preproc_executor = threads(num_threads, "preprocess")
        on_cpu = self._encoder.device == "cpu"
        self.batches: Batches[Prepared, torch.Tensor] = Batches(
            self._run_tower,
            max_batch or (1 if on_cpu else GPU_BATCH),
            MAX_BATCH_TOKENS,
            self._towers.dp_size,
        )

    @property
    def server_args(self) -> Any:
        return self._encoder.server_args

    @property
    def gpus(self) -> range:
        """Those of all ranks of all towers; rows are on the first one, or in host memory."""
        return gpus_of_towers(self.server_args)

    @property
    def width(self) -> int:
        """Elements of one embedding row, deepstack levels included."""
        return int(self._encoder._embedding_dims[Modality.IMAGE])

    @property
    def dtype(self) -> str:
        """Name of the rows' dtype, e.g. `bfloat16`: the tower's own (R11)."""
        return str(self._encoder._embedding_dtype).removeprefix("torch.")

    @property
    def image_processor(self) -> Any:
        return self._encoder.preprocessor.image_processor

    @property
    def video_options(self) -> dict[str, Any]:
        """Which frames SGLang takes of a video, and how large (`--mm-process-config`)."""
        return dict(self._encoder.preprocessor.vision_config["video"])

    @property
    def identity(self) -> str:
        """What decides an embedding beside the item and the layout: the checkpoint's revision, and
        the options of preprocessing.
        """
        processors = (self.image_processor, self._encoder.preprocessor.video_processor)
        named = {
            "revision": self.server_args.revision,
            "processors": [p.to_dict() if p is not None else None for p in processors],
            "options": self._encoder.preprocessor.vision_config,
        }
        return json.dumps(named, sort_keys=True, default=str)

    async def prepare(self, media: Image.Image | Video) -> Prepared:
        """Preprocess one picture or video. Raises `Refused` or `Unusable` if it cannot be."""
        if not isinstance(media, Video):
            return await self._prepare(media, Modality.IMAGE)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._videos, self._prepare_video, media)

    def _prepare_video(self, video: Video) -> Prepared:
        """In a thread, since SGLang decodes videos in the loop that it is called from. The
        coroutine is made here: one that was made before would never be awaited where the request
        is cancelled while it waits for the thread.
        """
        return asyncio.run(self._prepare(video, Modality.VIDEO))

    async def _prepare(self, media: Image.Image | Video, modality: Modality) -> Prepared:
        request = {
            "req_id": f"mm-resume-{uuid.uuid4().hex}",
            "num_parts": 1,
            "part_idx": 0,
            "mm_items": [media],
            "hashes": None,
        }
        try:
            context = await self._encoder._prepare_encode_context(
                [request], modality, use_global_cache=False
            )
        except MMError as error:
            if isinstance(error.__context__, Unusable | Refused):
                raise error.__context__ from None
            if int(error.code) >= 500:
                raise
            text = f"cannot be used ({error.message:.200}): send one of another shape"
            raise Refused(Reason.BAD_REQUEST, f"the {modality.name.lower()} {text}") from error
        result = context.preprocess_result
        t, h, w = (int(n) for n in result.grid_thw[0])
        return Prepared(
            int(result.token_counts[0]), (t, h, w), context, *self._times(context.aux_data)
        )

    def _times(self, aux_data: dict[str, Any]) -> tuple[tuple[float, ...], float | None]:
        """Of a video: the second of each step of its grid, and the seconds of one step, each where
        the model wants it.
        """
        timestamps = aux_data.get("video_timestamps")
        steps = tuple(float(second) for second in timestamps[0]) if timestamps else ()
        if aux_data.get("second_per_grid_ts") is None:
            return steps, None
        return steps, self._encoder.preprocessor.video_processor.temporal_patch_size / ENGINE_FPS

    async def encode(self, prepared: Prepared) -> torch.Tensor:
        """The embedding, `(total_tokens, width)`, on the tower's device and in its dtype.

        Cancelling skips the item if the tower has not started on it yet.
        """
        return await self.batches.result_of(prepared, prepared.total_tokens)

    def close(self) -> None:
        for threads in (self._tower, self._videos):
            threads.shutdown(wait=False, cancel_futures=True)
        self._towers.close()

    async def _run_tower(self, batch: list[Prepared]) -> list[torch.Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tower, self._encode, batch)

    def _encode(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """In the tower's thread."""
        return [rows for group in _groups(batch) for rows in self._encode_group(group)]

    def _encode_group(self, group: list[Prepared]) -> tuple[torch.Tensor, ...]:
        if len(group) == 1:
            compute = self._encoder._compute_embedding(group[0].context, keep_on_gpu=True)
            rows: torch.Tensor = asyncio.run(compute)
        else:
            rows = self._encode_together(group)
        if rows.device.type == "cuda":
            # The copy into the pool runs on another stream, from another thread.
            torch.cuda.current_stream(rows.device).synchronize()
        return rows.split([prepared.total_tokens for prepared in group])

    def _encode_together(self, batch: list[Prepared]) -> torch.Tensor:
        """All rows of all pictures, in order. Raises `RuntimeError` if there are too few."""
        items = [item for prepared in batch for item in self._items_of(prepared.context)]
        with torch.inference_mode():
            rows: torch.Tensor = batch[0].context.get_feature_fn(items)
        rows = rows.reshape(-1, rows.shape[-1])
        expected = sum(prepared.total_tokens for prepared in batch)
        if len(rows) != expected:
            raise RuntimeError(f"the tower made {len(rows)} rows, {expected} were expected")
        return rows

    def _items_of(self, context: Any) -> list[Any]:
        every = list(range(context.num_items))
        result = context.preprocess_result
        items: list[Any] = self._encoder._build_model_mm_items(
            context.mm_feature, result, every, context.modality
        )
        return items


def _groups(batch: list[Prepared]) -> Iterator[list[Prepared]]:
    """What goes through the tower together: neighbouring pictures do, a video goes alone."""
    for are_pictures, found in groupby(batch, lambda p: p.context.modality is Modality.IMAGE):
        group = list(found)
        yield from [group] if are_pictures else ([video] for video in group)


def _make_encoder(server_args: Any, place: Place) -> Any:
    """One rank of a tower."""
    load_plugins()  # as SGLang's engine does, but not its encoder
    publish_server_args(server_args, role="encoder")
    return get_mm_encoder_class()(
        server_args,
        dist_init_method=place.meeting_point,
        rank=place.rank,
        gpu_id=server_args.base_gpu_id + place.device,
    )


def max_image_tokens(image_processor: Any) -> int | None:
    """The longest embedding of one picture that a Hugging Face image processor allows.

    `max_pixels / (patch_size * merge_size)²`: one token covers merge_size² patches (Qwen-VL's
    image processors). `None` if the processor names no limit.
    """
    size = getattr(image_processor, "size", None) or {}
    largest = getattr(image_processor, "max_pixels", None)
    if largest is None:
        largest = dict(size).get("longest_edge")
    patch = getattr(image_processor, "patch_size", None)
    if largest is None or patch is None:
        return None
    side = int(patch) * int(getattr(image_processor, "merge_size", 1))
    return max(1, int(largest) // (side * side))
