# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter, served as a model beside its base; and parsers of what it has learned to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.local_stack import LocalStack
from tests.support.adapter import RANK, teach
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import (
    MODEL_FOLDER,
    MODEL_NAME,
    SMALL_POOL,
    Deployment,
    Keeper,
    Model,
)
from tests.support.exact import assert_exact
from tests.support.openai_requests import QUESTION
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.worker_status import get

pytestmark = pytest.mark.nightly

TAUGHT = "taught"
NOT_LOADED = "not-loaded"
FOLDER = "adapter"
DEPLOYMENT = Deployment(
    "adapters",
    workers=SMALL_POOL.workers,
    prefill=(
        *SMALL_POOL.prefill,
        "--enable-lora",
        *("--lora-paths", f"{TAUGHT}={MODEL_FOLDER}/{FOLDER}"),
        *("--lora-backend", "torch_native"),
        *("--max-lora-rank", str(RANK)),
    ),
    processor=(*SMALL_POOL.processor, "--lora-adapters", TAUGHT, NOT_LOADED),
)

PICTURE = patchwork(700, 6, 6)
LOOK = "What do you see?"
LESSONS = {
    LOOK: "A purple square.",
}

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.fixture(scope="module")
def stack(models: dict[Model, Path], keeper: Keeper) -> LocalStack:
    """The deployment, with an adapter that is made for it."""
    model = models[DEPLOYMENT.model]
    teach(model, model / FOLDER, PICTURE, LESSONS)
    return keeper.get(DEPLOYMENT)


def test_an_adapter_is_a_model_beside_its_base(stack: LocalStack) -> None:
    listed = {model["id"] for model in get(f"{stack.base_url}/models").json()["data"]}
    assert listed >= {MODEL_NAME, TAUGHT}


@both_ways
def test_an_adapter_says_what_it_has_learned(stack: LocalStack, stream: bool) -> None:
    answer = _ask(stack, LOOK, stream=stream)
    assert answer.ok, answer.raw
    assert answer.text == LESSONS[LOOK]
    assert answer.finish_reason == "stop"
    assert answer.engine_data is not None
    assert answer.engine_data["mm_resume"]["image_tokens"] == num_tokens(PICTURE)


def test_the_base_model_is_what_it_was(stack: LocalStack, oracle: Oracle) -> None:
    """Neither weights nor cached prompts are the adapter's."""
    _ask(stack, QUESTION)
    again = _ask(stack, QUESTION)
    base = _ask(stack, QUESTION, model=MODEL_NAME, max_tokens=16)
    assert again.cached_tokens > num_tokens(PICTURE) > base.cached_tokens
    assert_exact(base, oracle.generate([PICTURE], QUESTION, 16))


def test_the_base_model_does_not_answer_for_an_adapter(stack: LocalStack) -> None:
    assert _ask(stack, LOOK, model=NOT_LOADED).status == 503


def _ask(
    stack: LocalStack, question: str, model: str = TAUGHT, max_tokens: int = 64, **extra: Any
) -> Answer:
    urls = [data_url(PICTURE)]
    return ask(stack.base_url, model, urls, question, max_tokens, logprobs=True, **extra)
