# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The classes that SGLang finds here by `EntryClass`, each under the name of its architecture."""

import logging
from collections.abc import Iterable
from typing import Any

from sglang.srt.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from sglang.srt.models.qwen2_vl import Qwen2VLForConditionalGeneration
from sglang.srt.models.qwen3_vl import Qwen3VLForConditionalGeneration
from sglang.srt.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration

#: By SGLang's name: in the process that runs the model, only its own loggers are heard.
logger = logging.getLogger("sglang.srt.models.without_tower")

#: In the names of a tower's weights, as checkpoints and SGLang have them.
TOWER = "visual."


def without_tower(model: Any) -> Any:
    """A subclass of a model class, of the same name, for embeddings that come from elsewhere."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        model.__init__(self, *args, **kwargs)
        size = sum(p.numel() for p in self.visual.parameters())
        self.visual = None  # its memory is free again before any of the KV cache is taken
        logger.info("the vision tower is left out: %d parameters", size)

    def load_weights(self: Any, weights: Iterable[tuple[str, Any]]) -> Any:
        return model.load_weights(self, (w for w in weights if TOWER not in w[0]))

    methods = {"__init__": __init__, "load_weights": load_weights, "__module__": __name__}
    return type(model.__name__, (model,), methods)


EntryClass = [
    without_tower(Qwen2VLForConditionalGeneration),
    without_tower(Qwen2_5_VLForConditionalGeneration),
    without_tower(Qwen3VLForConditionalGeneration),
    without_tower(Qwen3VLMoeForConditionalGeneration),
]
