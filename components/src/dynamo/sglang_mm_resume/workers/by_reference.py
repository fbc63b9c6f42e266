# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What our prefill and decode handlers add to Dynamo's: media that are not fetched by URL.

A mixin in front of one of Dynamo's handlers. It offers what the request has for the engine in
place of media, and puts references where Dynamo's handler looks for URLs.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from dynamo.llm.exceptions import InvalidArgument

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.errors import ProtocolError, ResumeError, TransferFailed
from dynamo.sglang_mm_resume.core.messages import Refusal
from dynamo.sglang_mm_resume.workers.errors import to_http
from dynamo.sglang_mm_resume.workers.lifecycle import Admission, RequestStopped
from dynamo.sglang_mm_resume.workers.sglang_engine import (
    EmbeddingInput,
    Offer,
    adapters,
    modality_of_reference,
)

logger = logging.getLogger(__name__)


class ByReference:
    """Comes first among the bases of a handler; the next one is Dynamo's."""

    engine: Any
    lora_id_for_name: dict[str, int]
    """These two are Dynamo's."""

    engine_span = "prefill"
    """Lasts until the engine's first token, or its end where others have the tokens."""

    def __init__(
        self,
        *args: Any,
        embeddings: EmbeddingInput,
        admission: Admission,
        refusals: Counter[str],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._embeddings = embeddings
        self._admission = admission
        self._refusals = refusals
        # Dynamo knows only adapters that it has loaded itself, while the engine runs.
        self.lora_id_for_name |= adapters(self.engine)

    def offers(
        self, request: dict[str, Any], context: Any
    ) -> AbstractAsyncContextManager[Sequence[Offer]]:
        """What the engine is to see for each media item, until the request has ended.

        Takes out of the request what Dynamo's handler does not know.
        """
        raise NotImplementedError

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Answer one request."""
        with self._admission.work():
            async for chunk in self._answer(request, context):
                yield chunk

    async def _answer(
        self, request: dict[str, Any], context: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        references: list[str] = []
        try:
            self._require_adapter(_checked(request))
            async with self.offers(request, context) as offers:
                references = self._embeddings.offer(offers)
                if references:
                    request = _with_references(request, references)
                with tracing.span(self.engine_span) as engine:
                    async for chunk in super().generate(request, context):  # type: ignore[misc]
                        if chunk.get("token_ids"):
                            engine.end()
                        yield chunk
        except RequestStopped:
            return
        except ResumeError as error:
            self._refusals[Refusal.of(error).reason] += 1
            raise to_http(error) from error
        except ValueError as error:  # SGLang's checks of the request: length, parameters
            logger.warning("the engine refuses a request: %s", error)
            raise InvalidArgument(str(error)) from error
        finally:
            self._embeddings.withdraw(references)

    def _require_adapter(self, request: dict[str, Any]) -> None:
        """The base model must not answer for an adapter that is not here."""
        routing = request.get("routing")
        name = routing.get("lora_name") if isinstance(routing, dict) else None
        if name and name not in self.lora_id_for_name:
            raise TransferFailed(
                f"the LoRA adapter {name} is not loaded here: start this worker with "
                f"--enable-lora --lora-paths {name}=PATH"
            )


def _checked(request: Any) -> dict[str, Any]:
    if not isinstance(request, dict):
        raise ProtocolError("malformed message: a request is a dict")
    return request


def _with_references(request: dict[str, Any], references: list[str]) -> dict[str, Any]:
    """The request as Dynamo's handlers expect it, with references where URLs would be."""
    by_kind: dict[str, list[dict[str, str]]] = {}
    for reference in references:
        kind = f"{modality_of_reference(reference)}_url"
        by_kind.setdefault(kind, []).append({"Url": reference})
    return {**request, "multi_modal_data": by_kind}
