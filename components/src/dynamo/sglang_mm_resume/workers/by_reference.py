# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What our prefill and decode handlers add to Dynamo's: media as transfers instead of URLs.

A mixin in front of one of Dynamo's handlers. It takes the transfers out of the request, offers
their embeddings to the engine, and puts references where Dynamo's handler looks for URLs.
"""

import logging
from collections.abc import AsyncGenerator
from typing import Any

from dynamo.llm.exceptions import InvalidArgument
from pydantic import ValidationError

from dynamo.sglang_mm_resume.core.errors import ResumeError
from dynamo.sglang_mm_resume.core.messages import RECEIVED, Received
from dynamo.sglang_mm_resume.workers.errors import to_http
from dynamo.sglang_mm_resume.workers.lifecycle import RequestStopped, until_stopped
from dynamo.sglang_mm_resume.workers.sglang_engine import Embedding, EmbeddingInput

logger = logging.getLogger(__name__)

#: Where the processor puts the transfers of a request (`list[Received]`).
TRANSFERS_KEY = "mm_resume"


class ByReference:
    """Comes first among the bases of a handler; the next one is Dynamo's."""

    def __init__(self, *args: Any, embeddings: EmbeddingInput, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._embeddings = embeddings

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one request; its transfers, if any, are dropped at its end."""
        transfers = _transfers_of(request)
        references: list[str] = []
        try:
            if transfers:
                embeddings = await until_stopped(context, self.collect(transfers))
                references = self._embeddings.offer(embeddings)
                request = _with_references(request, references)
            async for chunk in super().generate(request, context):  # type: ignore[misc]
                yield chunk
        except RequestStopped:
            return
        except ResumeError as error:
            raise to_http(error) from error
        except ValueError as error:  # SGLang's checks of the request: length, parameters
            logger.warning("the engine refuses a request: %s", error)
            raise InvalidArgument(str(error)) from error
        finally:
            self._embeddings.withdraw(references)
            self.drop(transfers)

    async def collect(self, transfers: list[Received]) -> list[Embedding]:
        """What the engine is to see in place of each transfer, in their order."""
        raise NotImplementedError

    def drop(self, transfers: list[Received]) -> None:
        """The request has ended, in whatever way."""


def _transfers_of(request: dict[str, Any]) -> list[Received]:
    try:
        return RECEIVED.validate_python(request.pop(TRANSFERS_KEY, None) or [])
    except ValidationError as error:
        raise RuntimeError(f"the processor sent malformed transfers: {error}") from error


def _with_references(request: dict[str, Any], references: list[str]) -> dict[str, Any]:
    """The request as Dynamo's handlers expect it, with references where URLs would be."""
    urls = [{"Url": reference} for reference in references]
    return {**request, "multi_modal_data": {"image_url": urls}}
