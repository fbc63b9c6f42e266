# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's models without their vision towers, through SGLang's own point for models of others.

SGLang imports the package that `SGLANG_EXTERNAL_MODEL_PACKAGE` names, in the process that runs the
model, and takes its classes in place of its own. Its flag `--language-only` leaves no tower out of
these models, and `--language-model-only` leaves out the positions of pictures as well.
"""

from typing import Final

#: What models.py has.
ARCHITECTURES: Final = (
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
