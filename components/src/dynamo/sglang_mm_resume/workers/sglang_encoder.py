# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""All that is used of SGLang's vision encoder, private names included.

The tower runs in one thread of its own, so that health checks, cancellation and control messages
go on while it works (R15). The names are guarded by tests/workers/test_upstream_names.py.
"""

import asyncio
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from dynamo.sglang._compat import get_mm_encoder_class, publish_server_args
from PIL import Image
from sglang.srt.disaggregation.encoder.server import MMError
from sglang.srt.managers.schedule_batch import Modality

from dynamo.sglang_mm_resume.core.errors import Reason, Refused


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed item: its size is known, the tower has not run."""

    total_tokens: int
    grid: tuple[int, int, int]  # (t, h, w) in patches
    context: Any  # SGLang's EncodeContext


class VisionEncoder:
    """SGLang's `MMEncoder`: the vision tower without the language model."""

    def __init__(self, server_args: Any, num_threads: int) -> None:
        # SGLang reads the sizes of its loading and preprocessing pools from these.
        os.environ.setdefault("SGLANG_ENCODER_MM_LOAD_WORKERS", str(num_threads))
        os.environ.setdefault("SGLANG_ENCODER_PREPROC_WORKERS", str(num_threads))
        publish_server_args(server_args, role="encoder")
        self._encoder = get_mm_encoder_class()(
            server_args, dist_init_method="tcp://127.0.0.1:0", rank=0
        )
        self._tower = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vision-tower")

    @property
    def server_args(self) -> Any:
        return self._encoder.server_args

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

    async def prepare(self, image: Image.Image) -> Prepared:
        """Preprocess one picture. Raises `Refused` if it cannot be."""
        request = {
            "req_id": f"mm-resume-{uuid.uuid4().hex}",
            "num_parts": 1,
            "part_idx": 0,
            "mm_items": [image],
            "hashes": None,
        }
        try:
            context = await self._encoder._prepare_encode_context(
                [request], Modality.IMAGE, use_global_cache=False
            )
        except MMError as error:
            if int(error.code) >= 500:
                raise
            text = f"the picture cannot be used ({error.message:.200}): send one of another shape"
            raise Refused(Reason.BAD_REQUEST, text) from error
        result = context.preprocess_result
        t, h, w = (int(n) for n in result.grid_thw[0])
        return Prepared(int(result.token_counts[0]), (t, h, w), context)

    async def encode(self, prepared: Prepared) -> torch.Tensor:
        """The embedding, `(total_tokens, width)`, on the tower's device and in its dtype.

        Cancelling skips the item if the tower has not started on it yet.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tower, self._encode, prepared)

    def close(self) -> None:
        self._tower.shutdown(wait=False, cancel_futures=True)

    def _encode(self, prepared: Prepared) -> torch.Tensor:
        compute = self._encoder._compute_embedding(prepared.context, keep_on_gpu=True)
        rows: torch.Tensor = asyncio.run(compute)
        if rows.device.type == "cuda":
            # The copy into the pool runs on another stream, from another thread.
            torch.cuda.current_stream(rows.device).synchronize()
        return rows


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
