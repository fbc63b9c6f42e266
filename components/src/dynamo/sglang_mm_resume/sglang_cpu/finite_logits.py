# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A request whose next token cannot be drawn ends alone, and not with its engine.

Where a request of a batch limits what is drawn from (`top_k`, `top_p`, `min_p`), SGLang draws for
the whole batch with `torch.multinomial`, unless FlashInfer does it. That raises for a row that is
not a distribution; the scheduler then exits, and the engine with it. Such a row needs no bad value
in a request: a grammar allows only the end token while `min_tokens` forbids it, `stop_token_ids`
with `min_tokens` name the whole vocabulary, a grammar has no answer at all, or a tiny
`repetition_penalty` overflows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

#: What turns logits into those that are sampled from: penalties, grammar and bias.
TARGETS: Final = (
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.apply_logits_bias",
    "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.apply_logits_bias_with_observer",
)
#: Divided by the lowest temperature that SGLang samples with (1e-6), it is still a float32.
_HIGHEST: Final = 1e30


def register() -> None:
    """Hook into SGLang's sampling."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for target in TARGETS:
        HookRegistry.register(target, keep_finite, HookType.AFTER)


def keep_finite(_result: Any, _info: Any, logits: torch.Tensor, *_: Any, **__: Any) -> None:
    """Change `logits`, `(requests, vocabulary)`, in place so that every row can be drawn from.

    A row that allows no token becomes one that allows all: what is drawn from it does not fit the
    grammar, for which SGLang aborts that request. No other row changes, and no device is waited
    for. Returning None leaves the result of the hooked method as it is.
    """
    lowest = float("-inf")
    logits.nan_to_num_(nan=lowest, posinf=_HIGHEST, neginf=lowest)
    nothing_allowed = logits.amax(dim=-1, keepdim=True) == lowest
    logits.masked_fill_(nothing_allowed, 0.0)
