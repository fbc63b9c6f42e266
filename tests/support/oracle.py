# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The answers that a model must give: transformers' greedy decoding, without any hand-off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

_THREADS = 2


@dataclass(frozen=True)
class OracleAnswer:
    """A greedy answer."""

    token_ids: list[int]
    """New tokens, with the end token where the model gave one."""
    text: str
    """The same without special tokens."""
    prompt_tokens: int
    """Length of the prompt with every picture expanded to its tokens."""
    margin: float
    """Smallest distance of the best logit to the second one: near 0, another engine's rounding may
    choose otherwise and the answer is no evidence against it."""
    logprobs: list[float]
    """Log-probability of each new token."""


@dataclass(frozen=True)
class Clip:
    """A video: all of its frames, which the model is to see."""

    frames: Sequence[Image.Image]
    fps: float
    url: str | None = None
    """What stands for it in a request, if that is not to be its frames, compressed without loss."""

    @property
    def tensor(self) -> torch.Tensor:
        """`(frames, channels, height, width)`."""
        return torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in self.frames])

    @property
    def metadata(self) -> dict[str, Any]:
        """What transformers wants to know of it."""
        count = len(self.frames)
        return {
            "fps": self.fps,
            "duration": count / self.fps,
            "total_num_frames": count,
            "frames_indices": list(range(count)),
        }


class Oracle:
    """A model in float32 on the CPU, loaded once."""

    def __init__(self, model_path: str | Path) -> None:
        """Load the processor and the weights."""
        torch.set_num_threads(_THREADS)
        self._processor = AutoProcessor.from_pretrained(model_path)
        self._model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
        self._model.eval()

    def text_of(self, *token_ids: int) -> str:
        """How tokens are written, special ones left out."""
        return str(self._processor.tokenizer.decode(token_ids, skip_special_tokens=True))

    def generate(
        self, images: Sequence[Image.Image], question: str, max_tokens: int
    ) -> OracleAnswer:
        """The answer to pictures, in this order, followed by a question."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        return self.chat([{"role": "user", "content": content}], images, max_tokens)

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        images: Sequence[Image.Image],
        max_tokens: int,
        videos: Sequence[Clip] = (),
    ) -> OracleAnswer:
        """The answer to a conversation whose `image` and `video` parts stand for these."""
        prompt = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        rgb = [image.convert("RGB") for image in images]
        # Made tensors here: on the way through the processor numpy warns of a deprecation.
        inputs = self._processor(
            text=[prompt], images=rgb or None, **_of_videos(videos)
        ).convert_to_tensors("pt")
        prompt_tokens = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_tokens,
                output_logits=True,
                return_dict_in_generate=True,
            )
        token_ids = output.sequences[0, prompt_tokens:].tolist()
        text = self._processor.tokenizer.decode(token_ids, skip_special_tokens=True)
        logits = torch.cat(tuple(output.logits)).float()
        return OracleAnswer(
            token_ids, text, prompt_tokens, _margin(logits), _logprobs(logits, token_ids)
        )


def _of_videos(videos: Sequence[Clip]) -> dict[str, Any]:
    if not videos:
        return {}
    return {
        "videos": [video.tensor for video in videos],
        "video_metadata": [video.metadata for video in videos],
        "do_sample_frames": False,
    }


def _margin(logits: torch.Tensor) -> float:
    best_two = logits.topk(2, dim=-1).values
    return (best_two[:, 0] - best_two[:, 1]).min().item()


def _logprobs(logits: torch.Tensor, token_ids: Sequence[int]) -> list[float]:
    chosen = torch.tensor(token_ids).unsqueeze(1)
    return logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1).tolist()
