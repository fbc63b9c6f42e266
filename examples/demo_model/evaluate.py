# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the demo model's accuracy with transformers' greedy generation.

    python examples/demo_model/evaluate.py --model examples/demo_model/weights

Fresh pictures go through the real processor and chat template; an answer counts as right only if
it equals the expected one to the letter. The example pictures are asked as well. The *gap* of an
answer is the smallest difference between the best and the second-best logit over its tokens: it
tells how far the answer is from changing by rounding.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pictures import Sample, as_jpeg, sample
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

HERE = Path(__file__).parent
PICTURES = HERE.parent / "pictures"
MAX_NEW_TOKENS = 64
LARGE_SIDE = 10
"""Columns and rows of a large canvas: 1120 x 1120 pixels, 1,600 image tokens."""
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    gap: float
    image_tokens: int
    new_tokens: int


class Model:
    """A demo model with its processor, loaded from a folder."""

    def __init__(self, folder: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def ask(self, image: Image.Image, question: str) -> Answer:
        """Answer a question about a picture greedily."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = self._processor(text=[prompt], images=[image], return_tensors="pt")
        output = self._model.generate(
            **inputs,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answer = output.sequences[0, inputs["input_ids"].shape[1] :]
        best = torch.cat(output.logits).topk(2).values
        return Answer(
            text=self._processor.decode(answer, skip_special_tokens=True),
            gap=(best[:, 0] - best[:, 1]).min().item(),
            image_tokens=int((inputs["input_ids"] == self._model.config.image_token_id).sum()),
            new_tokens=len(answer),
        )


def measure(model: Model, name: str, samples: Iterable[Sample]) -> float:
    """Ask about every sample, print the accuracy by question and return it over all."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    tokens: set[int] = set()
    for item in samples:
        answer = model.ask(item.image, item.question)
        asked[item.question] += 1
        right[item.question] += answer.text == item.answer
        tokens.add(answer.image_tokens)
    share = right.total() / asked.total()
    span = f"{min(tokens)}" if len(tokens) == 1 else f"{min(tokens)} to {max(tokens)}"
    print(f"{name} ({span} image tokens): {right.total()}/{asked.total()} right = {share:.1%}")
    for question in sorted(asked):
        print(f"    {right[question]:4}/{asked[question]:<4} {question}", flush=True)
    return share


def ask_examples(model: Model, folder: Path) -> bool:
    """Ask about the example pictures; returns whether all answers are the expected ones."""
    questions = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    all_right = True
    for name, entry in questions.items():
        with Image.open(folder / name) as image:
            answer = model.ask(image.convert("RGB"), entry["question"])
        right = answer.text == entry["answer"]
        all_right &= right
        print(
            f"{name} ({answer.image_tokens} image tokens): {entry['question']} -> {answer.text!r}"
            f" ({'right' if right else 'WRONG, expected ' + repr(entry['answer'])},"
            f" {answer.new_tokens} tokens, gap {answer.gap:.2f})",
            flush=True,
        )
    return all_right


def small_samples(rng: random.Random, count: int) -> Iterable[Sample]:
    """Fresh pictures of one cell."""
    return (sample(rng) for _ in range(count))


def jpeg_samples(rng: random.Random, count: int) -> Iterable[Sample]:
    """Fresh pictures of one cell after JPEG compression."""
    for item in small_samples(rng, count):
        image = as_jpeg(item.image, JPEG_QUALITY)
        yield Sample(image, item.question, item.answer, item.scene)


def medium_samples(rng: random.Random, count: int) -> Iterable[Sample]:
    """Fresh canvases of one to five columns and rows."""
    return (sample(rng, columns=rng.randint(1, 5), rows=rng.randint(1, 5)) for _ in range(count))


def large_samples(rng: random.Random, count: int) -> Iterable[Sample]:
    """Fresh canvases of the largest size."""
    return (sample(rng, columns=LARGE_SIDE, rows=LARGE_SIDE) for _ in range(count))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; the exit status tells whether the example pictures are answered."""
    parser = argparse.ArgumentParser(description="Measure the demo model's accuracy.")
    parser.add_argument("--model", type=Path, default=HERE / "weights", help="model folder")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="example pictures")
    parser.add_argument("--small", type=int, default=300, help="how many small pictures")
    parser.add_argument("--medium", type=int, default=50, help="how many medium canvases")
    parser.add_argument("--large", type=int, default=50, help="how many large canvases")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads to use")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model = Model(options.model)
    runs = (
        ("small", small_samples, options.small),
        ("small JPEG", jpeg_samples, options.small),
        ("medium", medium_samples, options.medium),
        ("large", large_samples, options.large),
    )
    for name, samples, count in runs:
        if count:
            measure(model, name, samples(random.Random(options.seed), count))
    if not (options.pictures / "questions.json").exists():
        return 0
    return 0 if ask_examples(model, options.pictures) else 1


if __name__ == "__main__":
    raise SystemExit(main())
