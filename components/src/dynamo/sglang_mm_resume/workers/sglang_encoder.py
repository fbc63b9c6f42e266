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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import torch
from dynamo.sglang._compat import get_mm_encoder_class, publish_server_args
from PIL import Image
from sglang.srt.disaggregation.encoder.server import MMError
from sglang.srt.managers.schedule_batch import Modality

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.workers.batches import Batches

#: Pictures that a GPU's tower takes at once. On a CPU they go one by one: attention over a batch is
#: masked there, and eight pictures of 224 px took twelve times as long together as singly.
GPU_BATCH: Final = 8
#: Tokens of a batch, so that its activations stay those of one large picture.
MAX_BATCH_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Prepared:
    """A preprocessed item: its size is known, the tower has not run."""

    total_tokens: int
    grid: tuple[int, int, int]  # (t, h, w) in patches
    context: Any  # SGLang's EncodeContext


class VisionEncoder:
    """SGLang's `MMEncoder`: the vision tower without the language model."""

    def __init__(self, server_args: Any, num_threads: int, max_batch: int | None = None) -> None:
        """`max_batch`: pictures that the tower takes at once; `None`: by its device."""
        # SGLang reads the sizes of its loading and preprocessing pools from these.
        os.environ.setdefault("SGLANG_ENCODER_MM_LOAD_WORKERS", str(num_threads))
        os.environ.setdefault("SGLANG_ENCODER_PREPROC_WORKERS", str(num_threads))
        publish_server_args(server_args, role="encoder")
        self._encoder = get_mm_encoder_class()(
            server_args, dist_init_method="tcp://127.0.0.1:0", rank=0
        )
        self._tower = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vision-tower")
        on_cpu = self._encoder.device == "cpu"
        self.batches: Batches[Prepared, torch.Tensor] = Batches(
            self._run_tower, max_batch or (1 if on_cpu else GPU_BATCH), MAX_BATCH_TOKENS
        )

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

    @property
    def identity(self) -> str:
        """What decides an embedding beside the picture and the layout: the checkpoint's revision,
        and the options of its image processor.
        """
        options = self.image_processor.to_dict()
        named = {"revision": self.server_args.revision, "image processor": options}
        return json.dumps(named, sort_keys=True, default=str)

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
        return await self.batches.result_of(prepared, prepared.total_tokens)

    def close(self) -> None:
        self._tower.shutdown(wait=False, cancel_futures=True)

    async def _run_tower(self, batch: list[Prepared]) -> list[torch.Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tower, self._encode, batch)

    def _encode(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """In the tower's thread."""
        if len(batch) == 1:
            compute = self._encoder._compute_embedding(batch[0].context, keep_on_gpu=True)
            rows: torch.Tensor = asyncio.run(compute)
        else:
            rows = self._encode_together(batch)
        if rows.device.type == "cuda":
            # The copy into the pool runs on another stream, from another thread.
            torch.cuda.current_stream(rows.device).synchronize()
        return list(rows.split([prepared.total_tokens for prepared in batch]))

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
