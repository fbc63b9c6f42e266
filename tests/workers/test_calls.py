# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/calls.py`; what follows from silence is in test_retries.py and test_disagg.py."""

import asyncio
from typing import Any

import pytest

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.transport.rpc import PeerUnreachable
from dynamo.sglang_mm_resume.workers import calls
from dynamo.sglang_mm_resume.workers.calls import Workers


class Hanging:
    """A client whose worker never takes a request."""

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> Any:
        await asyncio.Event().wait()

    def instance_ids(self) -> list[int]:
        return [7]


class TimesOut(Hanging):
    """A client that gives up by itself."""

    async def direct(
        self, request: Any, instance_id: int, annotated: bool = True, context: Any = None
    ) -> Any:
        raise TimeoutError("connect to 10.0.0.7 timed out")


async def test_what_dynamo_says_of_a_worker_that_it_cannot_reach_is_passed_on() -> None:
    workers = Workers("encode", TimesOut(), TimesOut(), Settings())
    with pytest.raises(PeerUnreachable, match=r"encode worker 7: connect to 10\.0\.0\.7 timed out"):
        await workers.start(7, {})


async def test_a_worker_that_does_not_take_a_request_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "CONTROL_TIMEOUT_S", 0.05)
    workers = Workers("encode", Hanging(), Hanging(), Settings())
    with pytest.raises(PeerUnreachable, match="encode worker 7: no answer"):
        await asyncio.wait_for(workers.start(7, {}), 5.0)
