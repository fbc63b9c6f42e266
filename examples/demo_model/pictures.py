# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures, questions and answers for the demo model.

A *cell* is a picture of 112 x 112 pixels with one coloured digit, or one to four coloured shapes
of one kind, on a light plain ground. A *canvas* is a grid of cells in which one cell holds such a
drawing and all the others are empty. `sample` draws either; everything random comes from the
generator it is given, so equal generators give equal samples.

    import random
    from pictures import sample

    small = sample(random.Random(1))
    large = sample(random.Random(1), columns=10, rows=10)
"""

from __future__ import annotations

import functools
import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

CELL = 112
"""Width and height of a cell in pixels. One cell is one attention window of the vision tower."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "black": (20, 20, 20),
    "pink": (245, 130, 180),
}
SHAPES = ("circle", "square", "triangle", "star")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_COUNT = 4

ASK_DIGIT = "What digit is this?"
ASK_SHAPE = "What shape is this?"
ASK_COLOUR = "What colour is this?"
ASK_COUNT = "How many shapes are there?"
ASK_KIND = "Is this a digit or a shape?"
ASK_SHORT = "Describe the picture."
ASK_LONG = "Describe the picture in detail."
QUESTIONS = (ASK_DIGIT, ASK_SHAPE, ASK_COLOUR, ASK_COUNT, ASK_KIND, ASK_SHORT, ASK_LONG)

_COLOUR_JITTER = 15
_GROUND_RANGE = (225, 255)
_POSITION_JITTER = 10
_DIGIT_SIZES = (72, 84, 96)
_SINGLE_RADII = (26, 36)
_GROUP_RADII = (13, 17)
_GROUP_CENTRES = ((30, 30), (82, 30), (30, 82), (82, 82))
_GROUP_JITTER = 6
_TILT = 0.25

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a digit (`shape` is None) or `count` shapes of one kind."""

    colour: str
    digit: int | None = None
    shape: str | None = None
    count: int = 1

    @property
    def class_index(self) -> int:
        """0 to 9 for the digits, 10 and up for the shapes."""
        return self.digit if self.shape is None else 10 + SHAPES.index(self.shape)

    @property
    def colour_index(self) -> int:
        """Index of the colour in `COLOURS`."""
        return list(COLOURS).index(self.colour)

    @property
    def shape_count(self) -> int:
        """How many shapes there are; 0 for a digit."""
        return 0 if self.shape is None else self.count

    def answers(self) -> dict[str, str]:
        """All questions that fit this scene, with their answers."""
        if self.shape is None:
            return self._digit_answers()
        return self._shape_answers()

    def _digit_answers(self) -> dict[str, str]:
        word = NUMBERS[self.digit]
        return {
            ASK_DIGIT: str(self.digit),
            ASK_COLOUR: self.colour,
            ASK_KIND: "digit",
            ASK_SHORT: f"a {self.colour} {word}",
            ASK_LONG: (
                f"The picture shows one {self.colour} digit on a light ground. "
                f"The digit is {word}. The colour of the digit is {self.colour}. "
                "There are no shapes in the picture."
            ),
        }

    def _shape_answers(self) -> dict[str, str]:
        noun = self.shape if self.count == 1 else f"{self.shape}s"
        number = NUMBERS[self.count]
        return {
            ASK_SHAPE: self.shape,
            ASK_COLOUR: self.colour,
            ASK_COUNT: number,
            ASK_KIND: "shape",
            ASK_SHORT: f"{'a' if self.count == 1 else number} {self.colour} {noun}",
            ASK_LONG: (
                f"The picture shows {number} {self.colour} {noun} on a light ground. "
                f"The shape is {self.shape}. The colour of the shape is {self.colour}. "
                "There are no digits in the picture."
            ),
        }


@dataclass(frozen=True)
class Cell:
    """One drawn cell: the picture, its ground colour and what it shows."""

    image: Image.Image
    ground: Colour
    scene: Scene


@dataclass(frozen=True)
class Sample:
    """A picture with a question and its answer."""

    image: Image.Image
    question: str
    answer: str
    scene: Scene


def random_scene(rng: random.Random) -> Scene:
    """Pick what to draw: a digit in half of the cases, else shapes."""
    colour = rng.choice(list(COLOURS))
    if rng.random() < 0.5:
        return Scene(colour, digit=rng.randrange(10))
    count = rng.choice((1, 1, 1, 2, 3, MAX_COUNT))
    return Scene(colour, shape=rng.choice(SHAPES), count=count)


def random_question(rng: random.Random, scene: Scene) -> tuple[str, str]:
    """Pick a question that fits the scene; returns it with its answer."""
    return rng.choice(list(scene.answers().items()))


def draw_cell(rng: random.Random, scene: Scene) -> Cell:
    """Draw a scene with random sizes, places and tints."""
    ground = _random_ground(rng)
    image = Image.new("RGB", (CELL, CELL), ground)
    draw = ImageDraw.Draw(image)
    ink = _tint(rng, COLOURS[scene.colour])
    if scene.shape is None:
        _draw_digit(rng, draw, scene.digit, ink)
    else:
        _draw_shapes(rng, draw, scene, ink)
    return Cell(image, ground, scene)


def place_on_canvas(cell: Cell, columns: int, rows: int, column: int, row: int) -> Image.Image:
    """Put a cell into an otherwise empty canvas of `columns` x `rows` cells."""
    canvas = Image.new("RGB", (columns * CELL, rows * CELL), cell.ground)
    canvas.paste(cell.image, (column * CELL, row * CELL))
    return canvas


def sample(
    rng: random.Random, *, columns: int = 1, rows: int = 1, question: str | None = None
) -> Sample:
    """Draw a fresh picture of `columns` x `rows` cells and a question about it.

    Without `question`, a fitting one is picked; with it, scenes are drawn until it fits.
    """
    scene = random_scene(rng)
    while question is not None and question not in scene.answers():
        scene = random_scene(rng)
    if question is None:
        question, answer = random_question(rng, scene)
    else:
        answer = scene.answers()[question]
    cell = draw_cell(rng, scene)
    image = place_on_canvas(cell, columns, rows, rng.randrange(columns), rng.randrange(rows))
    return Sample(image, question, answer, scene)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


def corpus() -> list[str]:
    """Every question and answer that can occur, for training the tokenizer."""
    scenes = [Scene(colour, digit=digit) for colour in COLOURS for digit in range(10)]
    scenes += [
        Scene(colour, shape=shape, count=count)
        for colour in COLOURS
        for shape in SHAPES
        for count in range(1, MAX_COUNT + 1)
    ]
    return [text for scene in scenes for pair in scene.answers().items() for text in pair]


def _random_ground(rng: random.Random) -> Colour:
    red, green, blue = (rng.randint(*_GROUND_RANGE) for _ in range(3))
    return red, green, blue


def _tint(rng: random.Random, colour: Colour) -> Colour:
    red, green, blue = (
        max(0, min(255, value + rng.randint(-_COLOUR_JITTER, _COLOUR_JITTER))) for value in colour
    )
    return red, green, blue


def _jitter(rng: random.Random, value: float, amount: int) -> float:
    return value + rng.randint(-amount, amount)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _draw_digit(rng: random.Random, draw: ImageDraw.ImageDraw, digit: int, ink: Colour) -> None:
    font = _font(rng.choice(_DIGIT_SIZES))
    left, top, right, bottom = draw.textbbox((0, 0), str(digit), font=font)
    x = _jitter(rng, (CELL - (right - left)) // 2, _POSITION_JITTER)
    y = _jitter(rng, (CELL - (bottom - top)) // 2, _POSITION_JITTER)
    draw.text((x - left, y - top), str(digit), fill=ink, font=font)


def _draw_shapes(rng: random.Random, draw: ImageDraw.ImageDraw, scene: Scene, ink: Colour) -> None:
    if scene.count == 1:
        radius = rng.randint(*_SINGLE_RADII)
        centres, jitter = [(CELL // 2, CELL // 2)], _POSITION_JITTER
    else:
        radius = rng.randint(*_GROUP_RADII)
        centres, jitter = rng.sample(_GROUP_CENTRES, scene.count), _GROUP_JITTER
    tilt = rng.uniform(-_TILT, _TILT)
    for x, y in centres:
        centre = _jitter(rng, x, jitter), _jitter(rng, y, jitter)
        _draw_shape(draw, scene.shape, centre, radius, tilt, ink)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: Point, radius: float, tilt: float, ink: Colour
) -> None:
    upright = -math.pi / 2
    if shape == "circle":
        x, y = centre
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif shape == "square":
        draw.polygon(_ring(centre, [1.2 * radius] * 4, math.pi / 4 + tilt), fill=ink)
    elif shape == "triangle":
        draw.polygon(_ring(centre, [1.2 * radius] * 3, upright + tilt), fill=ink)
    else:
        draw.polygon(_ring(centre, [1.25 * radius, 0.53 * radius] * 5, upright + tilt), fill=ink)


def _ring(centre: Point, radii: list[float], start: float) -> list[Point]:
    """Corners around a centre, evenly spaced in angle, each with its own radius."""
    step = 2 * math.pi / len(radii)
    return [
        (
            centre[0] + radius * math.cos(start + index * step),
            centre[1] + radius * math.sin(start + index * step),
        )
        for index, radius in enumerate(radii)
    ]
