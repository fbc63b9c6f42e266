# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Over HTTP: pictures and videos on the model families that no other test serves.

Qwen3-VL-MoE runs with a decode worker, which has to place a video's steps as the prefill worker
does.
"""

from __future__ import annotations

import pytest

from examples.local_stack import LocalStack
from tests.conftest import Models
from tests.support import videos
from tests.support.deployments import QWEN2_VL, QWEN3_VL_MOE, Deployment, Keeper
from tests.support.exact import assert_exact
from tests.support.items import ask_about, expected
from tests.support.oracle import Clip, Oracle
from tests.support.pictures import patchwork

CLIP = Clip(videos.patchwork_frames(5, 4), fps=2)


@pytest.fixture(scope="module", params=[QWEN2_VL, QWEN3_VL_MOE], ids=lambda one: one.name)
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """Of one family after the other."""
    found: Deployment = request.param
    return found


@pytest.fixture(scope="module")
def stack(deployment: Deployment, keeper: Keeper) -> LocalStack:
    """The deployment, ready to serve."""
    return keeper.get(deployment)


@pytest.fixture(scope="module")
def oracle(deployment: Deployment, models: Models) -> Oracle:
    """Transformers on the same weights."""
    return Oracle(models[deployment.model])


def test_pictures_of_several_sizes(stack: LocalStack, oracle: Oracle) -> None:
    images = [patchwork(60, 8, 8), patchwork(61, 16, 8), patchwork(62, 8, 16)]
    for items in (images[:1], images, images[::-1]):
        assert_exact(ask_about(stack, items), expected(oracle, items))


@pytest.mark.skipif(not videos.AVAILABLE, reason=videos.MISSING)
def test_a_video_among_pictures(stack: LocalStack, oracle: Oracle) -> None:
    image = patchwork(63, 8, 8)
    for items in ([CLIP], [image, CLIP], [CLIP, image]):
        assert_exact(ask_about(stack, items), expected(oracle, items))
