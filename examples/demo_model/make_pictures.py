# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the example pictures and write their questions and expected answers.

python examples/demo_model/make_pictures.py --out examples/pictures
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pictures import (
    ASK_COUNT,
    ASK_DIGIT,
    ASK_LONG,
    ASK_SHORT,
    Scene,
    draw_cell,
    place_on_canvas,
)

JPEG_QUALITY = 90
DEFAULT_OUT = Path(__file__).parent.parent / "pictures"


@dataclass(frozen=True)
class Example:
    """An example picture: what it shows, how large it is, where the drawing is, what is asked."""

    name: str
    scene: Scene
    question: str
    columns: int = 1
    rows: int = 1
    column: int = 0
    row: int = 0


EXAMPLES = (
    Example("small.png", Scene("blue", digit=7), ASK_DIGIT),
    Example("small.jpg", Scene("red", shape="circle", count=3), ASK_SHORT),
    Example("large.png", Scene("green", shape="star"), ASK_LONG, 10, 10, 6, 3),
    Example("large.jpg", Scene("purple", shape="square", count=2), ASK_COUNT, 10, 9, 2, 5),
)


def write_examples(out: Path, seed: int) -> None:
    """Write the pictures and questions.json."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    questions = {}
    for example in EXAMPLES:
        cell = draw_cell(rng, example.scene)
        image = place_on_canvas(cell, example.columns, example.rows, example.column, example.row)
        options = {"quality": JPEG_QUALITY} if example.name.endswith(".jpg") else {}
        image.save(out / example.name, optimize=True, **options)
        answer = example.scene.answers()[example.question]
        questions[example.name] = {"question": example.question, "answer": answer}
    text = json.dumps(questions, indent=2) + "\n"
    (out / "questions.json").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Draw the example pictures.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    write_examples(options.out, options.seed)


if __name__ == "__main__":
    main()
