# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--frontend-decoding`: the frontend fetches and decodes pictures, and lends us their pixels.

What asks it to, and what it sends then. The pixels stay in its memory, for NIXL to read, until the
answer has ended (workers/frontend_memory.py).
"""

import os
import uuid
from typing import Any, Final

from dynamo.common.utils.media_decoder import build_frontend_image_decoder_options
from dynamo.llm import MediaDecoder, MediaFetcher
from pydantic import ValidationError

from dynamo.sglang_mm_resume.core.errors import ProtocolError
from dynamo.sglang_mm_resume.core.messages import Lent, Media

#: For a download by the frontend; as long as Dynamo's own workers ask for.
FETCH_TIMEOUT_MS: Final = 30_000


def frontend_decoding() -> dict[str, Any]:
    """What a model is registered with, so that its pictures come decoded."""
    decoder, fetcher = MediaDecoder(), MediaFetcher()
    decoder.enable_image(build_frontend_image_decoder_options())
    fetcher.timeout_ms(FETCH_TIMEOUT_MS)
    allow_internal = os.getenv("DYN_MM_ALLOW_INTERNAL", "0") == "1"
    fetcher.allow_direct_ip(allow_internal)
    fetcher.allow_direct_port(allow_internal)
    return {"media_decoder": decoder, "media_fetcher": fetcher}


def lent_picture(description: Any) -> Media:
    """A decoded picture of a request, as the frontend describes it. Raises `ProtocolError`."""
    try:
        lent = Lent.model_validate(description)
    except ValidationError as error:
        text = f"the frontend describes a decoded picture in an unknown way: {error!s:.300}"
        raise ProtocolError(text) from error
    name = lent.content_hash or uuid.uuid4().hex
    return Media(modality="image", url=f"frontend-decoded:{name}", lent=lent)
