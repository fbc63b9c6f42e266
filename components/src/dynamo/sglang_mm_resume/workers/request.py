# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the processor reads from a request of the frontend, and what it passes on."""

from typing import Any, Final

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.core.messages import Media

#: Where a request names its media for the prefill worker: transfers that carry their embeddings
#: (`list[Received]`), or the media themselves, to be encoded there (`list[Media]`).
TRANSFERS_KEY: Final = "mm_resume"
LOCAL_MEDIA_KEY: Final = "mm_resume_local"
#: A white square of 56 px, PNG: the smallest picture that image processors do not enlarge.
WHITE_SQUARE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAADgAAAA4CAAAAACN7WTCAAAAJUlEQVR42u3LMREAAAgE"
    "oNf+nbWC5ww7NfnpiKIoiqIoiqIoniwyIgFvCyLXLgAAAABJRU5ErkJggg=="
)


def warm_up_request(image_token_id: int) -> dict[str, Any]:
    """One tiny picture, one token."""
    return {
        "token_ids": [1, image_token_id, 2],
        "multi_modal_data": {"image_url": [{"Url": WHITE_SQUARE}]},
        "stop_conditions": {"max_tokens": 1},
        "sampling_options": {"temperature": 0.0},
        "output_options": {},
    }


def media_of(request: dict[str, Any], image_token_id: int, max_items: int) -> list[Media]:
    """The request's media items in prompt order. Raises `Refused` where they do not fit.

    The prompt has exactly one placeholder per item: more come from a prompt that spells the
    placeholder's text, fewer from items that the chat template did not place.
    """
    by_kind = request.get("multi_modal_data") or {}
    unsupported = [kind for kind, items in by_kind.items() if items and kind != "image_url"]
    if unsupported:
        raise Refused(Reason.BAD_REQUEST, f"{unsupported[0]} items are not supported: send images")
    items = by_kind.get("image_url") or []
    placeholders = request["token_ids"].count(image_token_id)
    if placeholders != len(items):
        raise Refused(
            Reason.BAD_REQUEST,
            f"the prompt has {placeholders} image placeholder(s), the request {len(items)} "
            "image(s): send one image per placeholder and do not write placeholders as text",
        )
    if len(items) > max_items:
        raise Refused(
            Reason.BAD_REQUEST,
            f"{len(items)} images in one request, at most {max_items} are accepted "
            "(--mm-resume-max-media-items)",
        )
    return [_media(item) for item in items]


def _media(item: Any) -> Media:
    url = item.get("Url") if isinstance(item, dict) else None
    if not isinstance(url, str) or not url:
        raise Refused(Reason.BAD_REQUEST, "an image must be given as a URL")
    return Media(modality="image", url=url)


def without_media(request: dict[str, Any]) -> dict[str, Any]:
    """The request for the engine: no URLs, and no second copy of the conversation."""
    dropped = ("multi_modal_data", "multi_modal_uuids", "mm_routing_info")
    forwarded = {key: value for key, value in request.items() if key not in dropped}
    extra = {
        k: v
        for k, v in (request.get("extra_args") or {}).items()
        if k not in ("messages", "formatted_prompt", "mm_hashes", "mm_hashes_by_modality")
    }
    if "extra_args" in forwarded:
        forwarded["extra_args"] = extra
    return forwarded


def priority_of(request: dict[str, Any]) -> int:
    """`nvext.agent_hints.priority` of the client; larger is more urgent, 0 is the default."""
    return int((request.get("routing") or {}).get("priority") or 0)


def num_choices(request: dict[str, Any]) -> int:
    """How many answers the client wants (`n`)."""
    return int((request.get("sampling_options") or {}).get("n") or 1)
