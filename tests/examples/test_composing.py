# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""docs/composing.md: workers of Dynamo's own join a graph that runs, serve beside it, and leave."""

from __future__ import annotations

import base64
import io
import runpy
from pathlib import Path
from typing import Any

import dynamo.runtime
import httpx
import pytest
import torch
from PIL import Image

from dynamo.sglang_mm_resume.workers import start_decode, start_prefill
from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.neighbours import (
    EMBEDDER,
    PAINTER,
    beside,
    embedder,
    embeddings,
    painter,
    picture_model,
    served,
    text_model,
)
from tests.support.pictures import patchwork
from tests.support.worker_status import wait_until

pytestmark = pytest.mark.nightly
DEPLOYMENT = TRAINED

TEXTS = ["What digit is this?", "Describe the picture in detail."]
PICTURE = patchwork(1300, 4, 4)
SIZE = (64, 64)
TIMEOUT_S = 120.0
GONE_DEADLINE_S = 60.0


def test_other_workers_serve_beside_the_graph(stack: LocalStack, tmp_path: Path) -> None:
    texts, pictures, media = (_folder(tmp_path, name) for name in ("texts", "pictures", "media"))
    neighbours = embedder(text_model(texts)), painter(picture_model(pictures), media)
    alone = _ask(stack)
    assert alone.ok, alone.raw
    with beside(stack, *neighbours):
        assert served(stack) == {MODEL_NAME, EMBEDDER, PAINTER}
        _assert_embeds(stack, texts)
        _assert_paints(stack)
        assert _ask(stack).token_ids == alone.token_ids
    assert wait_until(lambda: served(stack) == {MODEL_NAME}, GONE_DEADLINE_S)
    assert _post(stack, "embeddings", {"model": EMBEDDER, "input": TEXTS}).status_code == 404
    assert _ask(stack).token_ids == alone.token_ids


def test_the_planner_finds_our_components() -> None:
    """It scales the two that it knows by these names. It cannot be imported without what it needs
    itself; this file of its can be run.
    """
    planner = Path(dynamo.runtime.__file__).parents[1] / "planner"
    names = runpy.run_path(str(planner / "config" / "backend_components.py"))["SGLangComponentName"]
    assert names.prefill_worker_component_name == start_prefill.COMPONENT
    assert names.decode_worker_component_name == start_decode.COMPONENT
    assert names.prefill_worker_endpoint == names.decode_worker_endpoint == "generate"


def _assert_embeds(stack: LocalStack, model: Path) -> None:
    answer = _post(stack, "embeddings", {"model": EMBEDDER, "input": TEXTS})
    assert answer.status_code == 200, answer.text
    found = [torch.tensor(entry["embedding"]) for entry in answer.json()["data"]]
    for one, right in zip(found, embeddings(model, TEXTS), strict=True):
        torch.testing.assert_close(one, right, atol=1e-4, rtol=1e-4)


def _assert_paints(stack: LocalStack) -> None:
    body = {
        "model": PAINTER,
        "prompt": "one green star",
        "size": "x".join(map(str, SIZE)),
        "response_format": "b64_json",
        "nvext": {"num_inference_steps": 2},
    }
    answer = _post(stack, "images/generations", body)
    assert answer.status_code == 200, answer.text
    (made,) = answer.json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(made["b64_json"]))) as picture:
        assert picture.size == SIZE


def _post(stack: LocalStack, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{stack.base_url}/{path}", json=body, trust_env=False, timeout=TIMEOUT_S)


def _ask(stack: LocalStack) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [data_url(PICTURE)], TEXTS[0], 8)


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder
