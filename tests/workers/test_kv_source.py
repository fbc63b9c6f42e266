# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A prefill engine beside decode workers: what would leave one of the two waiting is an error."""

from __future__ import annotations

from typing import Any

import pytest
from dynamo.llm.exceptions import InvalidArgument
from dynamo.sglang.request_handlers import PrefillWorkerHandler

from dynamo.sglang_mm_resume.core.errors import TransferFailed
from dynamo.sglang_mm_resume.workers.prefill import KvSourceHandler
from dynamo.sglang_mm_resume.workers.sglang_engine import KvSource


async def _consume(monkeypatch: pytest.MonkeyPatch, meta_info: Any) -> Any:
    async def upstream(self: Any, *args: Any) -> Any:
        return meta_info

    monkeypatch.setattr(PrefillWorkerHandler, "_consume_results", upstream)
    return await object.__new__(KvSource)._consume_results("stream", "rid", "context")


@pytest.mark.parametrize("meta_info", [None, {"finish_reason": {"type": "length"}}])
async def test_what_ended_well_or_was_cancelled_passes(
    monkeypatch: pytest.MonkeyPatch, meta_info: Any
) -> None:
    assert await _consume(monkeypatch, meta_info) == meta_info


@pytest.mark.parametrize("status_code", [None, 500, 503])
async def test_an_abort_is_a_failed_transfer(
    monkeypatch: pytest.MonkeyPatch, status_code: int | None
) -> None:
    abort = {"type": "abort", "status_code": status_code, "message": "lost the peer"}
    with pytest.raises(TransferFailed, match="lost the peer"):
        await _consume(monkeypatch, {"finish_reason": abort})


async def test_an_abort_for_the_clients_fault_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    abort = {"type": "abort", "status_code": 400, "message": "too long"}
    with pytest.raises(InvalidArgument, match="too long"):
        await _consume(monkeypatch, {"finish_reason": abort})


async def test_a_processor_that_knows_no_decode_worker_is_told() -> None:
    handler = object.__new__(KvSourceHandler)
    with pytest.raises(RuntimeError, match="--decode-workers"):
        await anext(handler.generate({"token_ids": [1]}, context=None))
