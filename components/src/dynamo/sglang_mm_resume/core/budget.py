# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How long one prompt may become once its media items are expanded.

The processor adds up all items of a request; an encode worker checks its own before it spends the
vision tower on it.
"""

from dataclasses import dataclass

from dynamo.sglang_mm_resume.core.errors import Reason, Refused


@dataclass(slots=True)
class PromptBudget:
    """Tokens of one prompt, placeholders expanded as their sizes become known."""

    prompt_tokens: int
    max_tokens: int

    def add(self, item_tokens: int) -> None:
        """Replace one placeholder by its tokens. Raises `Refused` beyond what the model takes."""
        self.prompt_tokens += item_tokens - 1
        if self.prompt_tokens > self.max_tokens:
            raise Refused(
                Reason.BAD_REQUEST,
                f"the prompt has at least {self.prompt_tokens} tokens once its pictures are "
                f"expanded, the model takes {self.max_tokens}: send fewer or smaller pictures, "
                "or a shorter text",
            )

    def remove(self, item_tokens: int) -> None:
        """Take an item back: it is encoded once more, by another worker."""
        self.prompt_tokens -= item_tokens - 1
