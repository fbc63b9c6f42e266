# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The decode worker: takes the KV of a prompt from a prefill worker and generates the answer.

It never sees an embedding. What it needs of a picture is its place in the prompt and its grid, so
that the positions of its tokens are those that the prefill worker used.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dynamo.llm import HttpError
from dynamo.sglang.request_handlers import DecodeWorkerHandler

from dynamo.sglang_mm_resume.core.errors import ResumeError, TransferFailed
from dynamo.sglang_mm_resume.core.messages import (
    PROBE,
    Done,
    Refusal,
    dump,
    parse,
    version_of,
)
from dynamo.sglang_mm_resume.workers.by_reference import ByReference
from dynamo.sglang_mm_resume.workers.errors import to_http
from dynamo.sglang_mm_resume.workers.lifecycle import Admission
from dynamo.sglang_mm_resume.workers.request import transfers_of
from dynamo.sglang_mm_resume.workers.sglang_engine import (
    Embedding,
    EmbeddingInput,
    Offer,
    num_requests,
    rows_unseen,
)

logger = logging.getLogger(__name__)


class DecodeHandler(ByReference, DecodeWorkerHandler):
    """Dynamo's handler, which learns of pictures without fetching them a second time."""

    engine_span = "first_decode"

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one request, whose `bootstrap_info` says where its KV comes from."""
        try:
            async for chunk in super().generate(request, context):
                yield chunk
        except HttpError as error:
            if error.code != 500:
                raise
            # SGLang's word for KV that did not come: the same request may succeed later.
            raise to_http(TransferFailed(f"no answer from the engine: {error}")) from error

    @asynccontextmanager
    async def offers(self, request: dict[str, Any], context: Any) -> AsyncIterator[Sequence[Offer]]:
        self._admission.require_open()
        transfers = transfers_of(request)
        yield [Embedding.of(t, rows_unseen(t.total_tokens)) for t in transfers]


async def answer_probe(payload: Any) -> AsyncGenerator[dict[str, Any], None]:
    """Serves `mm_transfer`, where the processor asks a silent worker whether it is alive."""
    version = version_of(payload)
    try:
        parse(PROBE, payload)
        yield dump(Done(), version)
    except ResumeError as error:
        yield dump(Refusal.of(error), version)


async def drain(admission: Admission, grace_s: float) -> None:
    """Accept nothing new, and let the answers under way end. Bounded in time."""
    admission.leave()
    try:
        async with asyncio.timeout(grace_s):
            await admission.idle()
    except TimeoutError:
        logger.warning("%d requests did not finish in time", admission.accepted)


def decode_status(
    engine: Any, embeddings: EmbeddingInput, refusals: Counter[str]
) -> dict[str, Any]:
    """What operators and tests look at; every number is current."""
    return {
        "role": "decode",
        "embeddings_offered": len(embeddings),
        "content_names": embeddings.names_status,
        "engine_requests": num_requests(engine),
        "refusals": dict(refusals),
    }
