# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`core/messages.py`: what crosses a process boundary, and what is refused there."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.core.errors import (
    IllegalEvent,
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION, Layout

LAYOUT = Layout(model="model", width=8, dtype="bfloat16", block_size=4)
GRANT = m.Grant(
    transfer_id="transfer-1",
    generation=3,
    first_token=8,
    blocks=(9, 3, 4),
    block_size=4,
    chunk_blocks=2,
    valid_s=30.0,
)
RECEIVER = m.ReceiverName(instance_id=2**63, agent="prefill-1")
HELLO = m.Hello(layout=LAYOUT, instance_id=2**63, agent="encode-1")
WELCOME = m.Welcome(
    layout=LAYOUT,
    agent="prefill-1",
    metadata=b"\x80binary",
    base_address=2**47,
    num_blocks=4,
    memory="VRAM",
    device_id=1,
)
NOTICE = m.ChunkNotice(
    transfer_id="transfer-1", generation=3, chunk=1, first_token=16, num_tokens=2, total_tokens=18
)
MEDIA = m.Media(modality="image", url="data:image/png;base64,AA==")
LENT = m.Lent(
    nixl_metadata="b64:",
    nixl_descriptor=m.LentBytes(addr=4096, size=24),
    shape=(2, 4, 3),
    dtype="UINT8",
)
SIZED = m.Sized(total_tokens=18, grid=(1, 6, 12), content_hash="0123456789abcdef")
VIDEO_SIZED = m.Sized(
    total_tokens=36,
    grid=(2, 6, 12),
    content_hash="0123456789abcdef",
    timestamps=(0.25, 1.25),
    second_per_grid=1.0,
)

#: Every message with the adapter that reads it on the other side.
MESSAGES: list[tuple[m.Message, TypeAdapter[Any]]] = [
    (HELLO, m.PREFILL_REQUEST),
    (m.Reserve(transfer_id="transfer-1", writer_instance_id=2**63), m.PREFILL_REQUEST),
    (
        m.Resume(transfer_id="transfer-1", sent_tokens=0, total_tokens=9, wait=True),
        m.PREFILL_REQUEST,
    ),
    (m.Abort(transfer_id="transfer-1", writer_closed=False), m.PREFILL_REQUEST),
    (m.Ping(), m.PREFILL_REQUEST),
    (WELCOME, m.PREFILL_REPLY),
    (
        m.Granted(grant=GRANT, receiver=RECEIVER, max_prompt_tokens=4096, waited_s=0.5),
        m.PREFILL_REPLY,
    ),
    (m.NoBlocks(), m.PREFILL_REPLY),
    (m.Done(), m.PREFILL_REPLY),
    (m.Refusal(reason=Reason.OVERLOADED, message="later"), m.PREFILL_REPLY),
    (m.Forward(grant=GRANT), m.ENCODE_CONTROL),
    (m.Close(transfer_id="transfer-1"), m.ENCODE_CONTROL),
    (m.Ping(), m.ENCODE_CONTROL),
    (m.Done(), m.ENCODE_CONTROL_REPLY),
    (m.Refusal(reason=Reason.UNKNOWN_TRANSFER, message="?"), m.ENCODE_CONTROL_REPLY),
    (
        m.Encode(
            transfer_id="transfer-1",
            media=MEDIA,
            grant=GRANT,
            receiver=RECEIVER,
            prompt_tokens=12,
            max_prompt_tokens=2042,
        ),
        m.ENCODE,
    ),
    (SIZED, m.ENCODE_EVENT),
    (VIDEO_SIZED, m.ENCODE_EVENT),
    (m.Sent(generation=3, sent_tokens=18, num_bytes=288), m.ENCODE_EVENT),
    (m.Refusal(reason=Reason.TOO_LONG, message="smaller"), m.ENCODE_EVENT),
]
every_message = pytest.mark.parametrize(
    ("message", "adapter"), MESSAGES, ids=[message.__class__.__name__ for message, _ in MESSAGES]
)


def travelled(value: Any) -> Any:
    """What a msgpack codec makes of `value`: tuples come out as lists, bytes stay bytes."""
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        return {key: travelled(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [travelled(inner) for inner in value]
    assert value is None or type(value) in (str, int, float, bool, bytes), type(value)
    return value


@every_message
def test_every_message_survives_the_codec(message: m.Message, adapter: TypeAdapter[Any]) -> None:
    assert m.parse(adapter, travelled(m.dump(message))) == message


@every_message
def test_an_unknown_field_is_refused_by_name(message: m.Message, adapter: TypeAdapter[Any]) -> None:
    with pytest.raises(ProtocolError, match="surprise"):
        m.parse(adapter, m.dump(message) | {"surprise": 1})


@every_message
def test_another_version_is_refused_naming_both(
    message: m.Message, adapter: TypeAdapter[Any]
) -> None:
    newer = PROTOCOL_VERSION + 1
    with pytest.raises(Refused, match=f"{newer}.*{PROTOCOL_VERSION}") as refused:
        m.parse(adapter, m.dump(message) | {"v": newer, "field_of_the_future": 1})
    assert refused.value.reason is Reason.VERSION


@every_message
def test_the_version_before_is_understood_and_answered_in(
    message: m.Message, adapter: TypeAdapter[Any]
) -> None:
    before = PROTOCOL_VERSION - 1
    payload = travelled(m.dump(message, before))
    assert m.version_of(payload) == payload["v"] == before
    parsed = m.parse(adapter, payload)
    assert parsed.v == before
    if isinstance(message, m.Hello | m.Welcome):
        assert parsed.layout == message.layout.spoken_in(before)


@pytest.mark.parametrize("version", [PROTOCOL_VERSION + 1, 1, None, "2", [2], {}])
def test_a_version_that_is_not_spoken_is_answered_in_ours(version: object) -> None:
    assert m.version_of({"op": "ping", "v": version}) == PROTOCOL_VERSION


def test_only_a_refusal_of_our_version_is_to_be_said_again() -> None:
    refused = m.Refusal(reason=Reason.VERSION, message="no")
    assert m.version_to_repeat_in(refused.model_copy(update={"v": 2})) == 2
    assert m.version_to_repeat_in(refused) is None
    assert m.version_to_repeat_in(m.Refusal(reason=Reason.LAYOUT, message="no", v=2)) is None
    assert m.version_to_repeat_in(m.Done(v=2)) is None


def test_a_picture_has_nothing_that_version_2_would_not_know() -> None:
    sized = m.Sized(total_tokens=4, grid=(1, 4, 4), content_hash="0" * 16)
    assert set(m.dump(sized, 2)) == {"op", "v", "total_tokens", "grid", "content_hash"}
    received = m.Received.of("transfer", "image", sized).model_dump()
    assert set(received) == {"transfer_id", "modality", "total_tokens", "grid", "content_hash"}


def test_a_whole_hash_is_cut_for_a_worker_of_version_2() -> None:
    whole = "0123456789abcdef" * 4
    sized = m.Sized(total_tokens=4, grid=(1, 4, 4), content_hash=whole)
    assert sized.short_hash == whole[:16]
    assert [m.dump(sized, v)["content_hash"] for v in (2, 3)] == [whole[:16], whole]


@pytest.mark.parametrize("digits", [0, 15, 17, 63, 65])
def test_no_other_part_of_a_hash_is_a_name(digits: int) -> None:
    with pytest.raises(ProtocolError, match="content_hash"):
        m.parse(m.ENCODE_EVENT, m.dump(SIZED) | {"content_hash": "0" * digits})


def test_a_video_is_refused_for_a_worker_of_version_2_by_name() -> None:
    video, image = (m.Media(modality=kind, url="x") for kind in ("video", "image"))
    m.require_known(video, m.VIDEO_VERSION, "encode worker 7")
    m.require_known(image, 2, "encode worker 7")
    assert "lent" not in image.model_dump()
    for newer in (video, image.model_copy(update={"lent": LENT})):
        with pytest.raises(
            Refused, match=r"encode worker 7 speaks protocol version 2.*videos"
        ) as refused:
            m.require_known(newer, 2, "encode worker 7")
        assert refused.value.reason is Reason.VERSION


@every_message
def test_messages_cannot_be_changed(message: m.Message, adapter: TypeAdapter[Any]) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        message.v = 2


def test_every_message_class_is_covered() -> None:
    inner = {m.Message, m.Grant, m.ReceiverName, m.ChunkNotice}
    assert {type(message) for message, _ in MESSAGES} == set(m.Message.__subclasses__()) - inner


@pytest.mark.parametrize("payload", [None, 3, "text", [], {}, {"op": "nonsense"}, {"op": ["x"]}])
def test_what_is_no_message_is_a_protocol_error(payload: object) -> None:
    for adapter in (m.PREFILL_REQUEST, m.PREFILL_REPLY, m.ENCODE_CONTROL, m.ENCODE_EVENT, m.ENCODE):
        with pytest.raises(ProtocolError, match="malformed"):
            m.parse(adapter, payload)


@pytest.mark.parametrize(
    "transfer_id", ["short", "x" * 65, "with space", "newline-\n", "umläute-x"]
)
def test_a_transfer_id_is_short_and_plain(transfer_id: str) -> None:
    with pytest.raises(ProtocolError, match="transfer_id"):
        m.parse(m.ENCODE_CONTROL, {"op": "close", "transfer_id": transfer_id})


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": ()},
        {"blocks": (-1,)},
        {"block_size": 0},
        {"chunk_blocks": 0},
        {"valid_s": 0},
        {"valid_s": float("inf")},
        {"valid_s": float("nan")},
        {"valid_s": 1e300},
        {"generation": -1},
        {"first_token": -1},
    ],
)
def test_an_impossible_grant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        m.parse(m.ENCODE_CONTROL, {"op": "forward", "grant": GRANT.model_dump() | wrong})


def test_an_encode_carries_its_own_grant() -> None:
    """Closing one transfer would otherwise leave another behind."""
    encode = next(message for message, adapter in MESSAGES if adapter is m.ENCODE)
    with pytest.raises(ProtocolError, match="another transfer"):
        m.parse(m.ENCODE, m.dump(encode) | {"transfer_id": "transfer-2"})


@pytest.mark.parametrize("grid", [(), (1, 4), (1, 4, 4, 4), (0, 4, 4), (1, -4, -4)])
def test_a_grid_has_three_positive_sides(grid: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="grid"):
        m.parse(m.ENCODE_EVENT, m.dump(SIZED) | {"grid": grid})


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestamps": (0.5,)},
        {"timestamps": (0.5, 1.5, 2.5)},
        {"timestamps": (0.5, -1.0)},
        {"timestamps": (0.5, float("nan"))},
        {"timestamps": (0.5, 1e9)},
        {"timestamps": (0.5, "later")},
        {"second_per_grid": -1.0},
        {"second_per_grid": float("inf")},
    ],
)
def test_a_video_has_a_plausible_second_for_each_step(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        m.parse(m.ENCODE_EVENT, m.dump(VIDEO_SIZED) | wrong)


def test_what_is_received_is_what_was_described() -> None:
    received = m.Received.of("transfer-1", "video", VIDEO_SIZED)
    assert m.parse(m.RECEIVED, travelled([received.model_dump()])) == [received]
    assert {name: getattr(received, name) for name in m.Shape.model_fields} == {
        name: getattr(VIDEO_SIZED, name) for name in m.Shape.model_fields
    }


@pytest.mark.parametrize("modality", ["audio", "", None, 1])
def test_media_are_images_or_videos(modality: object) -> None:
    with pytest.raises(ProtocolError, match="modality"):
        m.parse(m.LOCAL_MEDIA, [{"modality": modality, "url": "data:,"}])


@pytest.mark.parametrize(
    "payload",
    [
        {"op": "x" * 2**20},
        {"op": "ping", "x" * 2**20: 1},
        {"op": "ping", "v": "x" * 2**20},
        {"op": "hello", "layout": {"x" * 2**20: 1}},
    ],
    ids=["tag", "field", "version", "layout"],
)
def test_a_refusal_does_not_repeat_megabytes(payload: dict[str, Any]) -> None:
    with pytest.raises(ResumeError) as error:
        m.parse(m.PREFILL_REQUEST, payload)
    assert len(m.Refusal.of(error.value).message) <= m.MAX_REFUSAL_CHARS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused(Reason.TOO_LONG, "text"), Reason.TOO_LONG),
        (TransferFailed("text"), Reason.FAILED),
        (ProtocolError("text"), Reason.PROTOCOL),
        (IllegalEvent("text"), Reason.PROTOCOL),
    ],
)
def test_an_error_keeps_its_meaning_and_text_on_the_way(error: ResumeError, reason: Reason) -> None:
    refused = m.Refusal.of(error).as_error()
    assert (refused.reason, str(refused)) == (reason, "text")


# Notices: bytes from NIXL.


@pytest.mark.parametrize("checksum", [None, 0, 2**32 - 1])
def test_a_notice_survives_its_bytes(checksum: int | None) -> None:
    notice = NOTICE.model_copy(update={"checksum": checksum})
    assert m.parse_notice(notice.model_dump_json().encode()) == notice


@pytest.mark.parametrize(
    "field", ["transfer_id", "generation", "chunk", "first_token", "num_tokens", "total_tokens"]
)
def test_a_notice_lacks_nothing(field: str) -> None:
    payload = NOTICE.model_dump()
    del payload[field]
    with pytest.raises(ProtocolError, match=field):
        m.parse_notice(json.dumps(payload).encode())


@pytest.mark.parametrize(
    "wrong",
    [
        {"v": PROTOCOL_VERSION + 1},
        {"op": "sent"},
        {"generation": -1},
        {"num_tokens": 0},
        {"total_tokens": 0},
        {"chunk": "one"},
        {"chunk": None},
        {"more": 1},
        {"transfer_id": ""},
        {"checksum": -1},
        {"checksum": 2**32},
        {"checksum": "sum"},
    ],
)
def test_a_malformed_notice_is_a_protocol_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        m.parse_notice(json.dumps(NOTICE.model_dump() | wrong).encode())


@given(
    st.binary(max_size=64)
    | st.builds(
        lambda cut: NOTICE.model_dump_json().encode()[:cut],
        st.integers(0, len(NOTICE.model_dump_json()) - 1),
    )
)
def test_any_other_bytes_are_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.parse_notice(payload)


def test_a_huge_notice_is_not_read() -> None:
    payload = NOTICE.model_dump_json().encode()
    with pytest.raises(ProtocolError, match="at most"):
        m.parse_notice(payload + b" " * m.MAX_NOTICE_BYTES)


# Chunks: both sides cut a grant alike.

blocks_lists = st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True)


@given(blocks_lists, st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.integers(1, 150))
def test_chunks_cover_every_token_of_a_grant_exactly_once(
    blocks: list[int], block_size: int, chunk_blocks: int, first_token: int, total: int
) -> None:
    """R2: token `i` of a grant lies in row `i % block_size` of `blocks[i // block_size]`."""
    grant = m.Grant(
        transfer_id="transfer-1",
        generation=0,
        first_token=first_token,
        blocks=tuple(blocks),
        block_size=block_size,
        chunk_blocks=chunk_blocks,
        valid_s=1.0,
    )
    covered: list[tuple[int, int, int]] = []
    for index, chunk in enumerate(m.chunks_of(grant, total)):
        assert (chunk.index, chunk.generation) == (index, grant.generation)
        assert 1 <= len(chunk.blocks) <= chunk_blocks
        assert (len(chunk.blocks) - 1) * block_size < chunk.num_tokens, "a block without a token"
        covered += [
            (chunk.first_token + i, chunk.blocks[i // block_size], i % block_size)
            for i in range(chunk.num_tokens)
        ]
    end = min(total, first_token + len(blocks) * block_size)
    assert covered == [
        (token, blocks[(token - first_token) // block_size], (token - first_token) % block_size)
        for token in range(first_token, end)
    ]


def test_a_grant_beyond_the_end_has_no_chunks() -> None:
    assert m.chunks_of(GRANT, GRANT.first_token) == []


def test_the_numbers_of_a_grant() -> None:
    assert (GRANT.capacity, GRANT.end_token, GRANT.num_chunks) == (12, 20, 2)


def test_a_worker_of_version_2_hears_that_one_which_shuts_down_is_overloaded() -> None:
    refusal = m.Refusal(reason=Reason.DRAINING, message="this worker shuts down")
    assert m.dump(refusal, m.DRAINING_VERSION)["reason"] == "draining"
    assert m.dump(refusal, 2)["reason"] == "overloaded"
