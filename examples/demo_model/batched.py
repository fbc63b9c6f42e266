# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The demo model's forward pass, batched for training on a CPU.

transformers runs the vision tower window by window and sees every pixel of a canvas. Training is
many times faster with three shortcuts that leave the result the same:

* all windows of a batch go through the window blocks at once;
* the empty cells of a canvas all look alike, so one of them stands for all until the last vision
  block, which attends to the whole canvas;
* a canvas may keep only some of its cells, in their true places (this one is an approximation,
  made in training only).

`check_against_transformers` compares the result with the real forward pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from build import MERGE, PATCH, TURN_END, TURN_START, VISION_END, VISION_START
from pictures import CELL, Cell, place_on_canvas
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

TOKENS_PER_SIDE = CELL // (PATCH * MERGE)
TOKENS_PER_CELL = TOKENS_PER_SIDE**2
PATCHES_PER_CELL = TOKENS_PER_CELL * MERGE**2
IGNORED = -100

_PIXEL_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_PIXEL_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
_CHECK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Layout:
    """A canvas of `columns` x `rows` cells of which those at `kept` (row, column) are present."""

    columns: int
    rows: int
    kept: tuple[tuple[int, int], ...]

    @classmethod
    def random(cls, rng: random.Random, max_side: int, max_kept: int) -> Layout:
        """A canvas of random size; if it has more than `max_kept` cells, a random part of them."""
        columns, rows = rng.randint(1, max_side), rng.randint(1, max_side)
        places = [(row, column) for row in range(rows) for column in range(columns)]
        kept = sorted(rng.sample(places, min(max_kept, len(places))))
        return cls(columns, rows, tuple(kept))

    @property
    def span(self) -> int:
        """By how much the canvas advances the text position."""
        return max(self.columns, self.rows) * TOKENS_PER_SIDE

    def token_positions(self) -> Tensor:
        """(row, column) of every image token, cell by cell."""
        inside = _square_positions(TOKENS_PER_SIDE)
        corners = torch.tensor(self.kept) * TOKENS_PER_SIDE
        return (corners[:, None] + inside[None]).flatten(0, 1)

    def patch_positions(self) -> Tensor:
        """(row, column) of every patch: cell by cell, token by token."""
        tokens = self.token_positions() * MERGE
        return (tokens[:, None] + _square_positions(MERGE)[None]).flatten(0, 1)

    def reading_order(self) -> Tensor:
        """Indices that sort the image tokens by row, then column."""
        row, column = self.token_positions().unbind(1)
        return torch.argsort(row * self.columns * TOKENS_PER_SIDE + column)


SINGLE = Layout(1, 1, ((0, 0),))


@dataclass(frozen=True)
class Dialogue:
    """Token ids of one question around a picture, and of its answer."""

    before: list[int]
    after: list[int]
    answer: list[int]


class DialogueEncoder:
    """Turns a question and an answer into token ids, as the chat template does."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}

    def __call__(self, question: str, answer: str, *, question_first: bool) -> Dialogue:
        head, tail = f"{TURN_START}user\n", f"{TURN_END}\n{TURN_START}assistant\n"
        if question_first:
            before, after = f"{head}{question}{VISION_START}", f"{VISION_END}{tail}"
        else:
            before, after = f"{head}{VISION_START}", f"{VISION_END}{question}{tail}"
        return Dialogue(self._ids(before), self._ids(after), self._ids(answer + TURN_END))

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text)["input_ids"]
        return self._cache[text]


@dataclass(frozen=True)
class Batch:
    """Canvases of one layout, with dialogues."""

    layout: Layout
    drawn: Tensor
    """Patches of the cells with a drawing, [batch, patches, values]."""
    empty: Tensor
    """Patches of an empty cell of the same ground colour, shaped likewise."""
    place: Tensor
    """Which of the kept cells holds the drawing, [batch]."""
    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    """Token to predict after each position, or `IGNORED`."""


def make_batch(
    layout: Layout,
    cells: Sequence[Cell],
    places: Sequence[int],
    dialogues: Sequence[Dialogue],
    image_token: int,
) -> Batch:
    """Arrange drawings and dialogues in tensors; short dialogues are padded at the end."""
    count = len(layout.kept) * TOKENS_PER_CELL
    length = max(len(d.before) + count + len(d.after) + len(d.answer) for d in dialogues)
    input_ids = torch.zeros(len(cells), length, dtype=torch.long)
    targets = torch.full_like(input_ids, IGNORED)
    positions = torch.zeros(3, len(cells), length, dtype=torch.long)
    for index, dialogue in enumerate(dialogues):
        prompt = dialogue.before + [image_token] * count + dialogue.after
        end = len(prompt) + len(dialogue.answer)
        input_ids[index, :end] = torch.tensor(prompt + dialogue.answer)
        targets[index, len(prompt) - 1 : end - 1] = torch.tensor(dialogue.answer)
        positions[:, index] = _rope_positions(layout, len(dialogue.before), length)
    return Batch(
        layout=layout,
        drawn=patchify([cell.image for cell in cells]),
        empty=patchify([Image.new("RGB", (CELL, CELL), cell.ground) for cell in cells]),
        place=torch.tensor(places),
        input_ids=input_ids,
        positions=positions,
        targets=targets,
    )


def patchify(images: Sequence[Image.Image]) -> Tensor:
    """Normalised patches of cell-sized pictures, [batch, patches, values], as the processor's."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
    pixels = (pixels - _PIXEL_MEAN) / _PIXEL_STD
    side = TOKENS_PER_SIDE
    grid = pixels.reshape(-1, side, MERGE, PATCH, side, MERGE, PATCH, 3)
    patches = grid.permute(0, 1, 4, 2, 5, 7, 3, 6)  # token row, column, patch row, column, colour
    twice = patches.unsqueeze(6).expand(*patches.shape[:6], 2, PATCH, PATCH)  # a still is 2 frames
    return twice.reshape(len(images), PATCHES_PER_CELL, -1)


def encode_images(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> Tensor:
    """Image features, cell by cell: [batch, tokens, width]."""
    visual = model.model.visual
    size, kept = len(batch.drawn), len(batch.layout.kept)
    *window_blocks, full_block = visual.blocks
    alone = kept == 1
    patches = batch.drawn if alone else torch.cat((batch.drawn, batch.empty))
    hidden = functional.linear(patches, visual.patch_embed.proj.weight.flatten(1))
    rotary = _vision_rotary(visual, SINGLE.patch_positions())
    for block in window_blocks:
        hidden = _vision_block(block, hidden, rotary)
    if not alone:
        drawn, empty = hidden.unflatten(0, (2, size)).unbind(0)
        here = torch.arange(kept) == batch.place[:, None]
        hidden = torch.where(here[..., None, None], drawn[:, None], empty[:, None]).flatten(1, 2)
    rotary = _vision_rotary(visual, batch.layout.patch_positions())
    hidden = _vision_block(full_block, hidden, rotary)
    return visual.merger(hidden).reshape(size, kept * TOKENS_PER_CELL, -1)


def answer_logits(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch, features: Tensor, image_token: int
) -> tuple[Tensor, Tensor]:
    """Logits at the positions that predict answers, and the tokens wanted there."""
    language = model.model.language_model
    in_order = features[:, batch.layout.reading_order()]
    embedded = language.embed_tokens(batch.input_ids)
    is_image = (batch.input_ids == image_token)[..., None]
    embedded = embedded.masked_scatter(is_image, in_order)
    output = language(inputs_embeds=embedded, position_ids=batch.positions, use_cache=False)
    wanted = batch.targets != IGNORED
    return model.lm_head(output.last_hidden_state[wanted]), batch.targets[wanted]


@torch.no_grad()
def check_against_transformers(
    model: Qwen2_5_VLForConditionalGeneration, cell: Cell, dialogue: Dialogue, image_token: int
) -> float:
    """Largest logit difference to the real forward pass on a 3 x 2 canvas; raises if not tiny."""
    columns, rows, place = 3, 2, 4
    kept = tuple((row, column) for row in range(rows) for column in range(columns))
    layout = Layout(columns, rows, kept)
    batch = make_batch(layout, [cell], [place], [dialogue], image_token)
    ours, _ = answer_logits(model, batch, encode_images(model, batch), image_token)

    row, column = kept[place]
    canvas = place_on_canvas(cell, columns, rows, column, row)
    pieces = [
        canvas.crop((x * CELL, y * CELL, (x + 1) * CELL, (y + 1) * CELL)) for y, x in layout.kept
    ]
    tokens = patchify(pieces).flatten(0, 1).unflatten(0, (-1, MERGE**2))
    output = model(
        input_ids=batch.input_ids,
        pixel_values=tokens[layout.reading_order()].flatten(0, 1),
        image_grid_thw=torch.tensor([[1, rows * CELL // PATCH, columns * CELL // PATCH]]),
        mm_token_type_ids=(batch.input_ids == image_token).int(),
    )
    theirs = output.logits[batch.targets != IGNORED]
    difference = (ours - theirs).abs().max().item()
    if difference > _CHECK_TOLERANCE * theirs.abs().max().item():
        raise RuntimeError(f"the batched forward pass is off by {difference:.2g}")
    return difference


def _square_positions(side: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def _rope_positions(layout: Layout, image_start: int, length: int) -> Tensor:
    """Time, height and width position of every token of a dialogue: [3, length]."""
    image = layout.token_positions()[layout.reading_order()]
    image_end = image_start + len(image)
    positions = torch.arange(length).repeat(3, 1)
    positions[0, image_start:image_end] = image_start
    positions[1:, image_start:image_end] = image_start + image.T
    positions[:, image_end:] += layout.span - len(image)
    return positions


def _vision_rotary(visual: torch.nn.Module, positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = visual.rotary_pos_emb(positions).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(values: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotary
    first, second = values.chunk(2, dim=-1)
    return values * cosine + torch.cat((-second, first), dim=-1) * sine


def _vision_block(block: torch.nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One vision block with attention over all patches of each row of the batch."""
    attention = block.attn
    projected = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = functional.scaled_dot_product_attention(
        _rotate(query, rotary), _rotate(key, rotary), value
    )
    hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
    return hidden + block.mlp(block.norm2(hidden))
