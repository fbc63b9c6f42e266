# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Train the demo model from scratch on a CPU, in about ten minutes on two cores.

    python examples/demo_model/train.py --out DIR

The vision tower learns first: extra linear heads, which are thrown away in the end, tell
class, colour and number from the image features. Then the model learns to answer questions about
small pictures, and last about canvases of growing size.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by torch: do not spin on a busy machine

import torch
from batched import (
    SINGLE,
    TOKENS_PER_CELL,
    Batch,
    DialogueEncoder,
    Layout,
    answer_logits,
    check_against_transformers,
    encode_images,
    make_batch,
)
from build import build, save_model
from pictures import (
    ASK_LONG,
    CELL,
    COLOURS,
    MAX_COUNT,
    NUMBERS,
    SHAPES,
    Cell,
    as_jpeg,
    draw_cell,
    random_scene,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

MAX_CANVAS_CELLS = 100
"""The largest canvas that is not scaled down: 1120 x 1120 pixels, 1,600 image tokens."""

LEARNING_RATE = 1.5e-3
FINAL_RATE = 0.04
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
MAX_GRADIENT = 1.0
HEAD_WEIGHT = 0.3
CANVAS_WEIGHT = 0.5
LONG_SHARE = 0.15
QUESTION_FIRST_SHARE = 0.2
JPEG_SHARE = 0.25
JPEG_QUALITIES = (70, 95)
REPORT_EVERY = 25


@dataclass(frozen=True)
class Stage:
    """A part of the training: every step takes small pictures and a batch of canvases."""

    steps: int
    small: int
    """Small pictures in a step."""
    answers: bool = True
    """Whether to train the answers; without, only the vision tower and the heads learn."""
    cells: int = 0
    """Cells that the canvases of a step have together; at least one canvas is drawn."""
    max_side: int = 1
    """Canvases have one to this many columns and rows."""
    max_kept: int = 1
    """Larger canvases are thinned out to this many cells."""


PHASES = (
    (Stage(steps=700, small=64, answers=False),),
    (
        Stage(steps=420, small=64),
        Stage(steps=420, small=32, cells=32, max_side=10, max_kept=8),
        Stage(steps=180, small=24, cells=48, max_side=6, max_kept=24),
        Stage(steps=90, small=24, cells=100, max_side=10, max_kept=MAX_CANVAS_CELLS),
    ),
)
"""The learning rate starts anew with every phase."""


@dataclass(frozen=True)
class Drawing:
    """A training example before it is arranged in tensors."""

    cell: Cell
    question: str
    answer: str


@dataclass(frozen=True)
class Labels:
    """What the drawings of a batch show, as class numbers."""

    values: Tensor

    @classmethod
    def of(cls, drawings: Sequence[Drawing]) -> Labels:
        """Class, colour and number of shapes of each drawing: [batch, 3]."""
        scenes = [drawing.cell.scene for drawing in drawings]
        return cls(torch.tensor([(s.class_index, s.colour_index, s.shape_count) for s in scenes]))


class Heads(nn.Module):
    """Linear classifiers on the image features of the drawn cell.

    One set sees all of them in order, the other one their mean; the latter makes the features
    easy to read wherever in a canvas the cell is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (len(NUMBERS) + len(SHAPES), len(COLOURS), MAX_COUNT + 1)
        self.ordered = nn.ModuleList(nn.Linear(TOKENS_PER_CELL * width, size) for size in sizes)
        self.mean = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def loss(self, features: Tensor, place: Tensor, labels: Labels) -> Tensor:
        """Mean over both sets of the sum of the three classification losses."""
        cells = features.unflatten(1, (-1, TOKENS_PER_CELL))
        drawn = cells[torch.arange(len(place)), place]
        inputs = ((self.ordered, drawn.flatten(1)), (self.mean, drawn.mean(1)))
        losses = [
            functional.cross_entropy(head(values), labels.values[:, column])
            for heads, values in inputs
            for column, head in enumerate(heads)
        ]
        return torch.stack(losses).sum() / len(inputs)


def draw(rng: random.Random, count: int) -> list[Drawing]:
    """Draw cells with questions; either all or none of them ask for the long description."""
    long = rng.random() < LONG_SHARE
    drawings = []
    for _ in range(count):
        cell = draw_cell(rng, random_scene(rng))
        if rng.random() < JPEG_SHARE:
            cell = replace(cell, image=as_jpeg(cell.image, rng.randint(*JPEG_QUALITIES)))
        answers = cell.scene.answers()
        long_answer = answers.pop(ASK_LONG)
        question, answer = (ASK_LONG, long_answer) if long else rng.choice(list(answers.items()))
        drawings.append(Drawing(cell, question, answer))
    return drawings


class Trainer:
    """Owns the model, the optimizer and the random generator of one training run."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, encoder: DialogueEncoder, seed: int
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.image_token = model.config.image_token_id
        self.rng = random.Random(seed)
        self.heads = Heads(model.config.text_config.hidden_size)
        self.parameters = [*model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    def step(self, stage: Stage, rate: float) -> dict[str, float]:
        """Take one optimizer step; returns the losses."""
        losses = self._backward(SINGLE, stage.small, 1.0, stage.answers)
        if stage.cells:
            layout = Layout.random(self.rng, stage.max_side, stage.max_kept)
            count = max(1, stage.cells // len(layout.kept))
            canvas = self._backward(layout, count, CANVAS_WEIGHT, stage.answers)
            losses |= {f"canvas {name}": value for name, value in canvas.items()}
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses

    def _backward(
        self, layout: Layout, count: int, weight: float, answers: bool
    ) -> dict[str, float]:
        """Add the gradients of one batch; returns its losses."""
        drawings = draw(self.rng, count)
        batch = self._arrange(layout, drawings)
        features = encode_images(self.model, batch)
        losses = {"heads": self.heads.loss(features, batch.place, Labels.of(drawings))}
        total = HEAD_WEIGHT * losses["heads"]
        if answers:
            logits, wanted = answer_logits(self.model, batch, features, self.image_token)
            losses["answers"] = functional.cross_entropy(logits, wanted)
            total = total + losses["answers"]
        (weight * total).backward()
        return {name: loss.item() for name, loss in losses.items()}

    def _arrange(self, layout: Layout, drawings: Sequence[Drawing]) -> Batch:
        dialogues = [
            self.encoder(
                drawing.question,
                drawing.answer,
                question_first=self.rng.random() < QUESTION_FIRST_SHARE,
            )
            for drawing in drawings
        ]
        places = [self.rng.randrange(len(layout.kept)) for _ in drawings]
        cells = [drawing.cell for drawing in drawings]
        return make_batch(layout, cells, places, dialogues, self.image_token)


def schedule(phases: Sequence[Sequence[Stage]]) -> Iterator[tuple[Stage, list[float]]]:
    """Every stage with the learning rates of its steps.

    In each phase the rate rises linearly and then falls along half a cosine.
    """
    for stages in phases:
        total = sum(stage.steps for stage in stages)
        rates = iter([_learning_rate(step, total) for step in range(total)])
        for stage in stages:
            yield stage, list(itertools.islice(rates, stage.steps))


def _learning_rate(step: int, total: int) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    decay = 0.5 * (1 + math.cos(math.pi * step / total))
    return LEARNING_RATE * warm_up * (FINAL_RATE + (1 - FINAL_RATE) * decay)


class Progress:
    """Prints mean losses every few steps."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = time.monotonic()
        self._step = 0
        self._recent: dict[str, list[float]] = {}

    def add(self, losses: dict[str, float], rate: float) -> None:
        """Count a step and print a line if it is time to."""
        self._step += 1
        for name, value in losses.items():
            self._recent.setdefault(name, []).append(value)
        if self._step % REPORT_EVERY == 0 or self._step == self._total:
            means = [f"{name} {sum(v) / len(v):.4f}" for name, v in self._recent.items()]
            seconds = time.monotonic() - self._start
            print(
                f"step {self._step}/{self._total}  {seconds:.0f} s  loss {', '.join(means)}"
                f"  rate {rate:.1e}",
                flush=True,
            )
            self._recent.clear()


def train(out: Path, *, seed: int, threads: int) -> None:
    """Build a fresh model in `out`, train it and save it there after every stage."""
    torch.set_num_threads(threads)
    model = build(
        out,
        seed=seed,
        layers=4,
        vision_hidden=96,
        vision_depth=3,
        min_pixels=CELL * CELL,
        max_pixels=MAX_CANVAS_CELLS * CELL * CELL,
        random_activation_scale=True,
    ).train()
    encoder = DialogueEncoder(AutoTokenizer.from_pretrained(out))
    trainer = Trainer(model, encoder, seed)
    _check(trainer)
    progress = Progress(sum(stage.steps for stages in PHASES for stage in stages))
    for stage, rates in schedule(PHASES):
        for rate in rates:
            progress.add(trainer.step(stage, rate), rate)
        save_model(model, out)


def _check(trainer: Trainer) -> None:
    rng = random.Random(0)
    cell = draw_cell(rng, random_scene(rng))
    dialogue = trainer.encoder("What colour is this?", "red", question_first=False)
    difference = check_against_transformers(trainer.model, cell, dialogue, trainer.image_token)
    print(f"batched forward pass agrees with transformers within {difference:.1e}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Train the tiny demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads to use")
    options = parser.parse_args(arguments)
    train(options.out, seed=options.seed, threads=options.threads)


if __name__ == "__main__":
    main()
