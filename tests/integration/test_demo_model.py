# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The model that the demo serves, with default settings: right answers, and bounded memory."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from examples.demo_model.pictures import Sample, sample
from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.worker_status import get, status

DEPLOYMENT = TRAINED

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples" / "pictures"
MAX_TOKENS = 64
AT_ONCE = 8

# Training draws from other generators: these pictures are new to the model.
FRESH_PICTURES_SEED = 987_654_321
DEFAULT_TOKENS = 1024
POOL_BLOCKS = 512
MIB = 2**20
POOL_MIB = 32
"""512 blocks of 128 tokens of 128 float32; Dynamo's own hand-off would hold 8 GiB."""
MAX_GROWTH_MIB = 48


@pytest.fixture(scope="module")
def trained_oracle() -> Oracle:
    return Oracle(ROOT / "examples" / "demo_model" / "weights")


def test_fresh_small_pictures_are_answered_right(stack: LocalStack) -> None:
    generator = random.Random(FRESH_PICTURES_SEED)
    samples = [sample(generator) for _ in range(100)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda s: _ask(stack, s.image, s.question), samples))
    assert all(answer.ok for answer in answers)
    wrong = [
        (drawn.question, drawn.answer, answer.text)
        for drawn, answer in zip(samples, answers, strict=True)
        if answer.text.strip() != drawn.answer
    ]
    print(f"{len(samples) - len(wrong)} of {len(samples)} right; wrong: {wrong}")
    assert len(wrong) <= 5


@pytest.mark.parametrize("name", ["large.png", "large.jpg", "small.png", "small.jpg"])
def test_pictures_of_the_demo(stack: LocalStack, trained_oracle: Oracle, name: str) -> None:
    about = json.loads((PICTURES / "questions.json").read_text(encoding="utf-8"))[name]
    image = Image.open(PICTURES / name).convert("RGB")
    answer = _ask(stack, image, about["question"])
    assert_exact(answer, trained_oracle.generate([image], about["question"], MAX_TOKENS))
    assert answer.text.strip() == about["answer"]
    assert answer.engine_data is not None
    moved = answer.engine_data["mm_resume"]
    is_large = name.startswith("large")
    assert (moved["image_tokens"] > DEFAULT_TOKENS) == is_large
    assert moved["rounds"] >= 2 if is_large else moved["rounds"] == 1
    print(f"{name}: {moved}, {answer.total_s:.2f} s")


def test_pools_have_the_documented_size(stack: LocalStack) -> None:
    for role in ("encode", "prefill"):
        assert status(stack, role)["pool"]["total"] == POOL_BLOCKS
        (url,) = stack.system_urls[role]
        metrics = get(f"{url}/metrics").text
        (size,) = [
            line
            for line in metrics.splitlines()
            if line.startswith("dynamo_component_mm_resume_pool_size_blocks{")
        ]
        assert float(size.split()[-1]) == POOL_BLOCKS
        assert f"{POOL_BLOCKS} blocks of 128 tokens ({POOL_MIB}.0 MiB)" in _log(stack, role)


def test_requests_do_not_add_memory(stack: LocalStack) -> None:
    generator = random.Random(FRESH_PICTURES_SEED + 1)
    _ask_all(stack, [sample(generator) for _ in range(10)])
    before = {role: _resident_mib(stack, role) for role in ("encode", "prefill")}
    _ask_all(stack, [sample(generator) for _ in range(20)])
    after = {role: _resident_mib(stack, role) for role in ("encode", "prefill")}
    for role in before:
        grown = after[role] - before[role]
        print(f"{role} worker: {before[role]:.0f} MiB, 20 requests later {after[role]:.0f} MiB")
        assert grown < MAX_GROWTH_MIB
    # The old way keeps 8 GiB of host memory per worker for this.
    assert after["prefill"] < 8 * 1024


def _ask_all(stack: LocalStack, samples: list[Sample]) -> None:
    for drawn in samples:
        assert _ask(stack, drawn.image, drawn.question).ok


def _ask(stack: LocalStack, image: Image.Image, question: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(image)], question, MAX_TOKENS)


def _resident_mib(stack: LocalStack, role: str) -> float:
    """Of the worker's main process, which owns the pool; SGLang's engine has its own."""
    (process,) = [p for p in stack.processes if p.name.startswith(role)]
    return float(psutil.Process(process.pid).memory_info().rss) / MIB


def _log(stack: LocalStack, role: str) -> str:
    (process,) = [p for p in stack.processes if p.name.startswith(role)]
    return process.log_path.read_text(encoding="utf-8", errors="replace")
