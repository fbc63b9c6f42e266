# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the KV router is asked, and told afterwards."""

from __future__ import annotations

from typing import Any

import pytest
from dynamo.common.multimodal.routing_utils import pad_value_for_mm_hash
from PIL import Image

from dynamo.sglang_mm_resume.core.messages import Media, Sized
from dynamo.sglang_mm_resume.workers.kv_router import UNKNOWN_TOKENS, KvRouting, cached_as
from dynamo.sglang_mm_resume.workers.sizes import ImageRule, KnownSizes
from tests.support.client import data_url

PAD = 9
PAGE = 4


class FakeRouter:
    """Chooses worker 7, which has two pages."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []
        self.request_ids: set[str] = set()

    async def best_worker(
        self, token_ids: list[int], *, request_id: str, lora_name: str | None
    ) -> tuple[int, int, int]:
        if self.error is not None:
            raise self.error
        self.request_ids.add(request_id)
        self.calls.append(("best", token_ids, lora_name))
        return 7, 0, 2

    async def mark_prefill_complete(self, request_id: str) -> None:
        if request_id not in self.request_ids:
            raise Exception(f"Request {request_id} not found")
        self.calls.append(("prefilled",))

    async def free(self, request_id: str) -> None:
        self.request_ids.remove(request_id)
        self.calls.append(("free",))


def picture(name: str) -> Media:
    return Media(modality="image", url=name)


def sized(tokens: int, content_hash: str) -> Sized:
    return Sized(total_tokens=tokens, grid=(1, 2, 2 * tokens), content_hash=content_hash)


def routing(router: FakeRouter | None) -> KvRouting:
    """Knows the pictures `a` and `b`."""
    sizes = KnownSizes(None)
    sizes.remember(picture("a"), sized(2, "00000000000000aa"))
    sizes.remember(picture("b"), sized(3, "00000000000000bb" + "1" * 48))
    return KvRouting(router, PAGE, {PAD}, sizes)


X = [1_000_000 + hash("x") % 2**30] * UNKNOWN_TOKENS
A, B = 1_000_000 + 0xAA, 1_000_000 + 0xBB


@pytest.mark.parametrize(
    ("token_ids", "names", "asked"),
    [
        ([1, 2], "", [1, 2]),
        ([1, PAD, 2], "a", [1, A, A, 2]),
        ([1, PAD, 2, PAD, 3], "ba", [1, B, B, B, 2, A, A, 3]),
        ([1, PAD, 2, PAD, 3], "ax", [1, A, A, 2, *X, 3]),
        ([1, PAD, 2, PAD, 3], "xa", [1, *X, 2, A, A, 3]),
    ],
)
async def test_the_router_is_asked_for_the_prompt_as_it_is_cached(
    token_ids: list[int], names: str, asked: list[int]
) -> None:
    router = FakeRouter()
    request = {"token_ids": token_ids, "routing": {"lora_name": "l"}}
    async with routing(router).choose(request, [picture(name) for name in names]) as choice:
        assert choice.worker == 7
    assert router.calls[0] == ("best", asked, "l")


@pytest.mark.parametrize("content_hash", ["0" * 16, "f" * 16, "123456789abcdef0"])
def test_pictures_are_called_as_dynamo_calls_them(content_hash: str) -> None:
    named = int(content_hash, 16)
    assert cached_as(named, 3) == [pad_value_for_mm_hash(named)] * 3


async def test_a_new_picture_is_as_much_work_as_it_has_tokens() -> None:
    router = FakeRouter()
    sizes = KnownSizes(ImageRule(token_side=28, min_pixels=1, max_pixels=10**6))
    image = picture(data_url(Image.new("RGB", (28 * 5, 28 * 3))))
    async with KvRouting(router, PAGE, {PAD}, sizes).choose({"token_ids": [PAD]}, [image]):
        pass
    (value,) = set(router.calls[0][1])
    assert len(router.calls[0][1]) == 15
    assert value == cached_as(hash(image.url), 1)[0]


async def test_the_router_hears_of_the_first_token_once_and_of_the_end() -> None:
    router = FakeRouter()
    with pytest.raises(KeyError):
        async with routing(router).choose({"token_ids": [1]}, []) as choice:
            await choice.prefilled()
            await choice.prefilled()
            raise KeyError
    assert [call[0] for call in router.calls] == ["best", "prefilled", "free"]
    assert router.request_ids == set()


async def test_a_request_that_another_worker_serves_is_no_work_of_the_choice() -> None:
    """The choice was full, or failed: the router must not go on counting the request there."""
    router = FakeRouter()
    async with routing(router).choose({"token_ids": [1]}, []) as choice:
        await choice.served_by(7)
        assert router.request_ids
        await choice.served_by(8)
        assert router.request_ids == set()
        await choice.prefilled()
    assert [call[0] for call in router.calls] == ["best", "free"]


async def test_a_router_that_has_forgotten_a_request_does_no_harm() -> None:
    router = FakeRouter()
    async with routing(router).choose({"token_ids": [1]}, []) as choice:
        router.request_ids.clear()
        await choice.prefilled()
    assert [call[0] for call in router.calls] == ["best"]


async def test_figures() -> None:
    chosen = routing(FakeRouter())
    async with chosen.choose({"token_ids": [1, PAD, 2]}, [picture("a")]):
        pass
    totals = chosen.totals
    assert (totals.routed, totals.routed_hits, totals.routing_failures) == (1, 1, 0)
    assert (totals.routed_tokens, totals.routed_overlap_tokens) == (4, 2 * PAGE)


async def test_a_router_that_fails_leaves_the_choice_to_others() -> None:
    router = FakeRouter(Exception("no endpoints available to route work"))
    chosen = routing(router)
    async with chosen.choose({"token_ids": [1]}, []) as choice:
        assert choice.worker is None
        await choice.prefilled()
    assert (router.calls, chosen.totals.routing_failures) == ([], 1)


async def test_without_a_router_nobody_is_chosen() -> None:
    async with routing(None).choose({"token_ids": [1, PAD]}, [picture("a")]) as choice:
        assert choice.worker is None
        await choice.prefilled()
