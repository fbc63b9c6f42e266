# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Small parts of the workers that need no process: media of a request, errors."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from dynamo.llm import HttpError
from dynamo.llm.exceptions import InvalidArgument

from dynamo.sglang_mm_resume.core.errors import (
    RETRYABLE,
    SHUTS_DOWN,
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.messages import Received
from dynamo.sglang_mm_resume.workers.errors import is_draining, is_without_vision, relayed, to_http
from dynamo.sglang_mm_resume.workers.request import (
    HASHES_KEY,
    TRANSFERS_KEY,
    Placeholders,
    carrying,
    media_of,
    names_of,
    transfers_of,
    without_media,
)
from dynamo.sglang_mm_resume.workers.sglang_encoder import max_image_tokens

PAD, VIDEO_PAD = 9, 10
PLACEHOLDERS: Placeholders = {"image": PAD, "video": VIDEO_PAD}
URLS = ["data:image/png;base64,AA", "http://example.com/b.png"]


def _request(placeholders: int, urls: list[Any], kind: str = "image_url") -> dict[str, Any]:
    return {
        "token_ids": [1, *([2, PAD] * placeholders), 3],
        "multi_modal_data": {kind: [{"Url": url} for url in urls]},
    }


# --- media_of ---


def test_media_come_in_prompt_order() -> None:
    media = media_of(_request(2, URLS), PLACEHOLDERS, max_items=2)
    assert [item.url for item in media] == URLS
    assert {item.modality for item in media} == {"image"}


@pytest.mark.parametrize("data", [None, {}, {"image_url": []}, {"video_url": []}])
def test_text_alone_has_no_media(data: dict[str, Any] | None) -> None:
    assert (
        media_of({"token_ids": [1, 2], "multi_modal_data": data}, PLACEHOLDERS, max_items=2) == []
    )


@pytest.mark.parametrize(("placeholders", "images"), [(1, 0), (2, 1), (0, 1), (1, 2)])
def test_placeholders_and_images_must_agree(placeholders: int, images: int) -> None:
    with pytest.raises(Refused, match="one image per placeholder") as caught:
        media_of(_request(placeholders, URLS[:images]), PLACEHOLDERS, max_items=8)
    assert caught.value.reason is Reason.BAD_REQUEST
    assert f"{placeholders} image placeholder(s)" in caught.value.message
    assert f"{images} image(s)" in caught.value.message


def test_more_items_than_allowed_are_refused_naming_the_setting() -> None:
    with pytest.raises(Refused, match=r"at most 1 .*--mm-resume-max-media-items"):
        media_of(_request(2, URLS), PLACEHOLDERS, max_items=1)


def test_images_and_videos_come_in_prompt_order() -> None:
    request = {
        "token_ids": [1, VIDEO_PAD, 2, PAD, PAD, 3, VIDEO_PAD],
        "multi_modal_data": {
            "image_url": [{"Url": "i1"}, {"Url": "i2"}],
            "video_url": [{"Url": "v1"}, {"Url": "v2"}],
        },
    }
    media = media_of(request, PLACEHOLDERS, max_items=4)
    assert [item.url for item in media] == ["v1", "i1", "i2", "v2"]
    assert [item.modality for item in media] == ["video", "image", "image", "video"]
    assert names_of(media) == ["video 1", "image 1", "image 2", "video 2"]


def test_placeholders_and_videos_must_agree() -> None:
    with pytest.raises(Refused, match=r"1 video placeholder\(s\), the request 0 video\(s\)"):
        media_of({**_request(1, URLS[:1]), "token_ids": [PAD, VIDEO_PAD]}, PLACEHOLDERS, 8)
    with pytest.raises(Refused, match=r"0 video placeholder\(s\), the request 1 video\(s\)"):
        media_of(_request(0, URLS[:1], kind="video_url"), PLACEHOLDERS, 8)


def test_images_and_videos_count_together() -> None:
    data = {"image_url": [{"Url": "i"}], "video_url": [{"Url": "v"}]}
    with pytest.raises(Refused, match="2 media items in one request, at most 1"):
        media_of({"token_ids": [PAD, VIDEO_PAD], "multi_modal_data": data}, PLACEHOLDERS, 1)


def test_other_media_are_refused_by_name() -> None:
    audio = _request(0, URLS[:1], kind="audio_url")
    with pytest.raises(Refused, match="audio_url items are not supported: send images or videos"):
        media_of(audio, PLACEHOLDERS, max_items=8)


def test_a_model_without_videos_refuses_them() -> None:
    with pytest.raises(Refused, match="video_url items are not supported: send images"):
        media_of(_request(0, URLS[:1], kind="video_url"), {"image": PAD}, max_items=8)


@pytest.mark.parametrize("item", [{"Url": ""}, {"Url": None}, {"Other": {}}, "x", None])
def test_image_that_is_no_url_is_refused(item: Any) -> None:
    request = {"token_ids": [PAD], "multi_modal_data": {"image_url": [item]}}
    with pytest.raises(Refused, match="as a URL") as caught:
        media_of(request, PLACEHOLDERS, max_items=8)
    assert caught.value.reason is Reason.BAD_REQUEST


# --- transfers ---

HASHES = ["0123456789abcdef" * 4, "fedcba9876543210" * 4]
RECEIVED = [
    Received(
        transfer_id=f"transfer-{i}",
        modality="image",
        total_tokens=4,
        grid=(1, 4, 4),
        content_hash=content_hash,
    )
    for i, content_hash in enumerate(HASHES)
]


def test_transfers_are_read_as_they_were_written() -> None:
    request = {"token_ids": [1], **carrying(RECEIVED)}
    assert transfers_of(request) == RECEIVED
    assert request == {"token_ids": [1]}
    assert transfers_of(request) == []


def test_a_worker_of_version_2_finds_16_digits_where_it_looks() -> None:
    hashes = [item["content_hash"] for item in carrying(RECEIVED)[TRANSFERS_KEY]]
    assert hashes == [content_hash[:16] for content_hash in HASHES]


def test_a_processor_of_version_2_names_16_digits() -> None:
    request = {TRANSFERS_KEY: carrying(RECEIVED)[TRANSFERS_KEY]}
    assert [t.content_hash for t in transfers_of(request)] == [h[:16] for h in HASHES]


@pytest.mark.parametrize(
    "hashes", [HASHES[:1], HASHES[::-1], [*HASHES, HASHES[0]], [1, 2], "ab", [HASHES[0][:-1]]]
)
def test_hashes_of_other_items_are_refused(hashes: Any) -> None:
    with pytest.raises(ProtocolError):
        transfers_of(carrying(RECEIVED) | {HASHES_KEY: hashes})


# --- without_media ---


def test_the_engine_gets_neither_urls_nor_the_conversation_again() -> None:
    request = {
        **_request(1, URLS[:1]),
        "multi_modal_uuids": {},
        "mm_routing_info": {},
        "sampling_options": {"temperature": 0},
        "extra_args": {
            "messages": [],
            "formatted_prompt": "x",
            "mm_hashes": ["0"],
            "mm_hashes_by_modality": {},
            "nvext": {"kept": 1},
        },
    }
    assert without_media(request) == {
        "token_ids": request["token_ids"],
        "sampling_options": {"temperature": 0},
        "extra_args": {"nvext": {"kept": 1}},
    }


def test_a_client_names_neither_worker_nor_rank() -> None:
    """Dynamo reads them from headers and `nvext`; an engine would index by a rank."""
    names = {"backend_instance_id": 7, "prefill_worker_id": 7, "dp_rank": 9, "prefill_dp_rank": 9}
    kept = {"lora_name": "red", "priority": 3, "cache_salt": "s"}
    request = {"token_ids": [1], "routing": {**names, **kept}}
    assert without_media(request)["routing"] == kept
    assert request["routing"] == {**names, **kept}


def test_the_request_itself_is_left_alone() -> None:
    request = {**_request(1, URLS[:1]), "extra_args": {"messages": []}}
    without_media(request)
    assert "multi_modal_data" in request
    assert request["extra_args"] == {"messages": []}


def test_request_without_extra_arguments_gets_none() -> None:
    assert "extra_args" not in without_media({"token_ids": [1]})


# --- to_http ---


@pytest.mark.parametrize("reason", [Reason.BAD_REQUEST, Reason.TOO_LONG])
def test_fault_of_the_client_is_told_to_the_client(reason: Reason) -> None:
    error = to_http(Refused(reason, "send less"))
    assert isinstance(error, InvalidArgument)
    assert str(error) == "send less"


@pytest.mark.parametrize("reason", sorted(RETRYABLE))
def test_what_may_pass_is_503(reason: Reason) -> None:
    error = to_http(Refused(reason, "later"))
    assert isinstance(error, HttpError)
    assert error.code == 503


def test_failed_transfer_is_503() -> None:
    error = to_http(TransferFailed("lost"))
    assert isinstance(error, HttpError)
    assert error.code == 503


OURS = [Reason.LAYOUT, Reason.PROTOCOL, Reason.INTERNAL]


@pytest.mark.parametrize(
    "error", [ProtocolError("odd"), *(Refused(reason, "odd") for reason in OURS)], ids=repr
)
def test_our_own_fault_is_no_fault_of_the_client(error: ResumeError) -> None:
    # A ValueError or an InvalidArgument would become 400.
    assert type(to_http(error)) is RuntimeError


def test_an_engine_without_a_tower_is_told_from_all_else() -> None:
    error = to_http(Refused(Reason.NO_VISION, "no tower"))
    arrived = ValueError('UnsupportedMedia: {"message": "no tower", "code": 415}')
    assert [is_without_vision(e) for e in (error, arrived)] == [True, True]
    others = [to_http(Refused(reason, "x")) for reason in set(Reason) - {Reason.NO_VISION}]
    assert not any(is_without_vision(other) for other in others)


def test_a_worker_that_shuts_down_is_told_from_one_that_is_full() -> None:
    error = to_http(Refused(Reason.DRAINING, SHUTS_DOWN))
    arrived = ValueError(f'Unavailable: {{"message": "{SHUTS_DOWN}", "code": 503}}')
    assert [is_draining(e) for e in (error, arrived)] == [True, True]
    others = [HttpError(503, "later"), HttpError(500, SHUTS_DOWN), ValueError(SHUTS_DOWN)]
    assert not any(is_draining(other) for other in others)


def test_every_reason_has_a_status() -> None:
    reasons = set(Reason) - {Reason.NO_VISION}
    kinds = Counter(type(to_http(Refused(reason, "x"))) for reason in reasons)
    assert kinds == {InvalidArgument: 2, HttpError: len(RETRYABLE), RuntimeError: len(OURS)}


# --- relayed ---


@pytest.mark.parametrize("error", [InvalidArgument("send less"), HttpError(503, "later")])
def test_errors_that_dynamo_knows_pass_unchanged(error: Exception) -> None:
    assert relayed(error) is error


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DeadlineExceeded: TimeoutError: slow", TimeoutError),
        ("InvalidRequest: ValueError: no such parameter", ValueError),
        ("Internal: RuntimeError: broken", RuntimeError),
        ("Cancelled: gone", RuntimeError),
        ("no class at all", RuntimeError),
    ],
)
def test_errors_by_text(text: str, kind: type[Exception]) -> None:
    assert type(relayed(ValueError(text))) is kind


def test_lost_peer_is_503() -> None:
    error = relayed(Exception("Unavailable: No workers available for endpoint a/b"))
    assert isinstance(error, HttpError)
    assert error.code == 503


@pytest.mark.parametrize("code", [404, 413, 429, 503])
def test_status_of_another_worker_is_kept(code: int) -> None:
    error = relayed(ValueError(f'NotFound: {{"message": "why", "code": {code}}}'))
    assert isinstance(error, HttpError)
    assert error.code == code


# --- max_image_tokens ---


@pytest.mark.parametrize(
    ("processor", "tokens"),
    [
        ({"max_pixels": 4096 * 28 * 28, "patch_size": 14, "merge_size": 2}, 4096),
        ({"size": {"longest_edge": 100 * 32 * 32}, "patch_size": 16, "merge_size": 2}, 100),
        ({"max_pixels": 14 * 14 * 5, "patch_size": 14}, 5),
        ({"max_pixels": 28 * 28 * 2 - 1, "patch_size": 14, "merge_size": 2}, 1),
        ({"max_pixels": 1, "patch_size": 14, "merge_size": 2}, 1),
        ({"patch_size": 14, "merge_size": 2}, None),
        ({"size": {"height": 336, "width": 336}, "patch_size": 14}, None),
        ({"max_pixels": 4096}, None),
        ({}, None),
    ],
)
def test_longest_embedding_of_one_picture(processor: dict[str, Any], tokens: int | None) -> None:
    assert max_image_tokens(SimpleNamespace(**processor)) == tokens
