# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Vision towers without a vision: what their ranks compute needs all of them, over gloo."""

from __future__ import annotations

from datetime import timedelta

import torch
from torch import distributed

from dynamo.sglang_mm_resume.workers.towers import Place

TIMEOUT = timedelta(seconds=120)
UNUSABLE = -1.0
"""An item that no rank can compute."""


class Model:
    """The sum over all ranks of what each makes of the items."""

    def __init__(self, place: Place, tp_size: int) -> None:
        self._factor = place.rank + 1
        if tp_size > 1:
            distributed.init_process_group(
                "gloo",
                init_method=place.meeting_point,
                rank=place.rank,
                world_size=tp_size,
                timeout=TIMEOUT,
            )

    def get_image_feature(self, items: list[float]) -> torch.Tensor:
        if UNUSABLE in items:
            raise RuntimeError("unusable")
        rows = torch.tensor(items) * self._factor
        if distributed.is_initialized():
            distributed.all_reduce(rows)
        return rows


class Encoder:
    """As far as `Towers` is concerned."""

    def __init__(self, place: Place, tp_size: int) -> None:
        self.model = Model(place, tp_size)


def make_encoder(tp_size: int, place: Place) -> Encoder:
    return Encoder(place, tp_size)
