# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the processor reads from a request of the frontend, and what it passes on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter

from dynamo.sglang_mm_resume.core.errors import ProtocolError, Reason, Refused
from dynamo.sglang_mm_resume.core.messages import (
    CONTENT_HASHES,
    RECEIVED,
    SHORT_HASH_DIGITS,
    Media,
    Modality,
    Received,
    parse,
)
from dynamo.sglang_mm_resume.workers.frontend_decoding import lent_picture

T = TypeVar("T")

#: The token that stands for one item of each modality that the model knows.
Placeholders = Mapping[Modality, int]

#: Where a request names its media for the prefill worker: transfers that carry their embeddings
#: (`list[Received]`), or the media themselves, to be encoded there (`list[Media]`).
TRANSFERS_KEY: Final = "mm_resume"
LOCAL_MEDIA_KEY: Final = "mm_resume_local"
#: Beside the transfers, in their order: the whole content hashes (`list[ContentHash]`). Under a key
#: of their own, as workers of version 2 take 16 digits only, and let this key be.
HASHES_KEY: Final = "mm_resume_hashes"
#: Where a request for several choices names, for the prefill worker, a room for each further one.
ROOMS_KEY: Final = "mm_resume_rooms"
#: Keys of `routing` with which a client can name a worker or a rank (headers, `nvext`).
_NAMES_A_WORKER: Final = frozenset(
    {
        "backend_instance_id",
        "prefill_worker_id",
        "decode_worker_id",
        "allowed_worker_ids",
        "routing_constraints",
        "dp_rank",
        "prefill_dp_rank",
    }
)
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


def media_of(request: dict[str, Any], placeholders: Placeholders, max_items: int) -> list[Media]:
    """The request's media items in prompt order. Raises `Refused` where they do not fit.

    The prompt has exactly one placeholder per item: more come from a prompt that spells the
    placeholder's text, fewer from items that the chat template did not place.
    """
    by_kind = request.get("multi_modal_data") or {}
    known = {f"{modality}_url" for modality in placeholders}
    for kind, items in by_kind.items():
        if items and kind not in known:
            others = " or ".join(f"{modality}s" for modality in placeholders)
            raise Refused(Reason.BAD_REQUEST, f"{kind} items are not supported: send {others}")
    modality_of = {token: modality for modality, token in placeholders.items()}
    places = [modality_of[token] for token in request["token_ids"] if token in modality_of]
    given = {m: by_kind.get(f"{m}_url") or [] for m in placeholders}
    for modality, items in given.items():
        if places.count(modality) != len(items):
            raise Refused(
                Reason.BAD_REQUEST,
                f"the prompt has {places.count(modality)} {modality} placeholder(s), the request "
                f"{len(items)} {modality}(s): send one {modality} per placeholder and do not write "
                "placeholders as text",
            )
    if len(places) > max_items:
        raise Refused(
            Reason.BAD_REQUEST,
            f"{len(places)} media items in one request, at most {max_items} are accepted "
            "(--mm-resume-max-media-items)",
        )
    queues = {modality: iter(items) for modality, items in given.items()}
    return [_media(modality, next(queues[modality])) for modality in places]


def _media(modality: Modality, item: Any) -> Media:
    if modality == "image" and isinstance(item, dict) and "Decoded" in item:
        return lent_picture(item["Decoded"])
    url = item.get("Url") if isinstance(item, dict) else None
    if not isinstance(url, str) or not url:
        raise Refused(Reason.BAD_REQUEST, f"each {modality} must be given as a URL")
    return Media(modality=modality, url=url)


def carrying(received: Sequence[Received]) -> dict[str, Any]:
    """What a request says of the transfers that carry its media; `transfers_of` reads it."""
    short = ({"content_hash": item.short_hash} for item in received)
    return {
        TRANSFERS_KEY: [item.model_dump() | s for item, s in zip(received, short, strict=True)],
        HASHES_KEY: [item.content_hash for item in received],
    }


def transfers_of(request: dict[str, Any]) -> list[Received]:
    """The transfers that carry the request's media, taken out of it. Raises `ProtocolError`.

    A processor of version 2 names 16 digits of each content hash.
    """
    transfers = taken(RECEIVED, request, TRANSFERS_KEY)
    hashes = taken(CONTENT_HASHES, request, HASHES_KEY) or [t.content_hash for t in transfers]
    if [h[:SHORT_HASH_DIGITS] for h in hashes] != [t.short_hash for t in transfers]:
        raise ProtocolError("malformed message: content hashes of other items")
    return [
        transfer.model_copy(update={"content_hash": whole})
        for transfer, whole in zip(transfers, hashes, strict=True)
    ]


def taken(adapter: TypeAdapter[list[T]], request: dict[str, Any], key: str) -> list[T]:
    """What the processor put under `key`, taken out. Raises `ProtocolError`."""
    return parse(adapter, request.pop(key, None) or [])


def names_of(media: Sequence[Media]) -> list[str]:
    """What messages call each item: `image 1`, `video 1`, `image 2`."""
    seen: Counter[str] = Counter()
    names = []
    for item in media:
        seen[item.modality] += 1
        names.append(f"{item.modality} {seen[item.modality]}")
    return names


def without_media(request: dict[str, Any]) -> dict[str, Any]:
    """The request for the engine: no URLs, and no second copy of the conversation. No names of
    workers and ranks either: a client may have written them, and they are chosen here.
    """
    dropped = ("multi_modal_data", "multi_modal_uuids", "mm_routing_info")
    forwarded = {key: value for key, value in request.items() if key not in dropped}
    if forwarded.get("routing"):
        routing = forwarded["routing"].items()
        forwarded["routing"] = {key: value for key, value in routing if key not in _NAMES_A_WORKER}
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


def one_choice(request: dict[str, Any]) -> dict[str, Any]:
    """The request for a single one of its choices."""
    sampling = {**(request.get("sampling_options") or {}), "n": 1}
    return {**request, "sampling_options": sampling}


def num_choices(request: dict[str, Any]) -> int:
    """How many answers the client wants (`n`)."""
    return int((request.get("sampling_options") or {}).get("n") or 1)
