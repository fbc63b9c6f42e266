# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Over HTTP: media come from wherever Dynamo's URL policy allows, and are fetched once."""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.support import videos
from tests.support.client import Answer, ask, data_url, png
from tests.support.deployments import MODEL_NAME, SMALL_POOL, Keeper
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.web import Page, serve

DEPLOYMENT = SMALL_POOL

QUESTION = "What is this?"
MAX_TOKENS = 8
PICTURES = [patchwork(seed, 7, 6) for seed in (300, 301, 302)]
FRONTEND, ENCODE_WORKER = "dynamo-ai", "aiohttp"


def test_every_kind_of_url_in_one_request(
    stack: LocalStack, keeper: Keeper, oracle: Oracle
) -> None:
    for number, picture in enumerate(PICTURES):
        picture.save(keeper.local_media / f"{number} ä.png")
    with serve({"/1.png": Page(png(PICTURES[1]))}) as web:
        local = (keeper.local_media / "2 ä.png").as_uri()
        answer = _ask(stack, data_url(PICTURES[0]), f"{web}/1.png", local)
    assert_exact(answer, oracle.generate(PICTURES, QUESTION, MAX_TOKENS))


def test_what_has_been_fetched_may_be_gone(stack: LocalStack, oracle: Oracle) -> None:
    """The frontend asks for a picture itself, to know its size; whoever encodes it asks once."""
    asked: list[str] = []
    pages = {f"/{n}.png": Page(png(picture), uses=2) for n, picture in enumerate(PICTURES)}
    with serve(pages, asked) as web:
        answer = _ask(stack, *(f"{web}{path}" for path in pages))
    assert_exact(answer, oracle.generate(PICTURES, QUESTION, MAX_TOKENS))
    for path in pages:
        by = [
            agent for line in asked for page, _, agent in [line.partition(" by ")] if page == path
        ]
        assert len(by) == 2
        assert sum(FRONTEND in agent for agent in by) == sum(ENCODE_WORKER in a for a in by) == 1


def test_a_url_for_one_use_is_used_up_by_the_frontend(stack: LocalStack) -> None:
    with serve({"/once.png": Page(png(PICTURES[0]), uses=1)}) as web:
        answer = _ask(stack, f"{web}/once.png")
    assert answer.status == 400, answer.raw
    assert "its server answered with status 410" in answer.error_message


@pytest.mark.skipif(not videos.AVAILABLE, reason=videos.MISSING)
def test_a_video_of_every_kind_of_url_is_one_video(stack: LocalStack, keeper: Keeper) -> None:
    """Nobody but the encode worker asks for it, so that a URL for one use will do."""
    video = videos.lossless(videos.patchwork_frames(9, 4), 2)
    (keeper.local_media / "v.mkv").write_bytes(video)
    asked: list[str] = []
    with serve({"/v.mkv": Page(video, "video/x-matroska", uses=1)}, asked) as web:
        inline = videos.video_data_url(video)
        local = (keeper.local_media / "v.mkv").as_uri()
        first, *others = (_watch(stack, url) for url in (inline, f"{web}/v.mkv", local))
    assert first.ok, first.raw
    assert first.usage is not None
    assert [other.token_ids for other in others] == [first.token_ids] * 2
    # The engine has seen this prompt before, all but the token that it has to compute.
    cached = [other.usage["prompt_tokens_details"]["cached_tokens"] for other in others]
    assert cached == [first.usage["prompt_tokens"] - 1] * 2
    assert len(asked) == 1


@pytest.mark.parametrize("where", ["{folder}/../outside.png", "/etc/hostname", "{folder}/no.png"])
def test_other_files_are_refused_alike(stack: LocalStack, keeper: Keeper, where: str) -> None:
    PICTURES[0].save(keeper.local_media.parent / "outside.png")
    answer = _ask(stack, "file://" + where.format(folder=keeper.local_media))
    assert answer.status == 400, answer.raw
    assert "is not a file that may be read (DYN_MM_LOCAL_PATH)" in answer.error_message


def _watch(stack: LocalStack, url: str) -> Answer:
    parts = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    return ask(stack.base_url, MODEL_NAME, [], "", MAX_TOKENS, messages=messages)


def _ask(stack: LocalStack, *urls: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
