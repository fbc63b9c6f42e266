# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that crosses a process boundary, as frozen models that refuse unknown fields.

Three channels carry them (docs/protocol.md §2):
    control   dicts over Dynamo endpoints, each answered by one: `Hello`, `Reserve`, `Resume` and
              `Abort` to a prefill worker, `Forward` and `Close` to an encode worker, `Ping` to
              either
    stream    dicts an encode worker yields as it serves `Encode`: `Sized`, then a `Sent` per grant
    notice    JSON bytes that NIXL delivers after a chunk's data: `ChunkNotice`
"""

import math
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from dynamo.sglang_mm_resume.core.errors import (
    ProtocolError,
    Reason,
    Refused,
    ResumeError,
    TransferFailed,
)
from dynamo.sglang_mm_resume.core.layout import (
    MAX_CHUNK_BLOCKS,
    PROTOCOL_VERSION,
    SPOKEN,
    Layout,
    blocks_for,
)

TransferId = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[0-9A-Za-z_-]+$")]
Tokens = Annotated[int, Field(ge=0)]
BlockIndex = Annotated[int, Field(ge=0)]
Modality = Literal["image", "video"]
#: Patches of one media item: t, h, w.
Grid = tuple[PositiveInt, PositiveInt, PositiveInt]
#: SHA-256 over the bytes of an item and what else decides its embedding, or the first 16 digits of
#: it, where a peer of version 2 has named the item: 64 bits are no proof that two are equal.
ContentHash = Annotated[str, Field(pattern="^[0-9a-f]{16}([0-9a-f]{48})?$")]
#: Seconds of a video; more than eleven days are nonsense.
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]

#: Characters of a refusal at most: a peer's own words are quoted in it, and may be megabytes.
MAX_REFUSAL_CHARS: Final = 1000
#: The first version with videos.
VIDEO_VERSION: Final = 3
#: The first version that names contents by the whole hash, and the digits of it before that.
FULL_HASH_VERSION: Final = 3
SHORT_HASH_DIGITS: Final = 16
#: The first version in which a worker that shuts down says so; before, it was overloaded.
DRAINING_VERSION: Final = 3
#: Bytes of a notice at most; a whole one has some 200.
MAX_NOTICE_BYTES: Final = 1024
#: Blocks of a pool at most: a writer prepares a list of all of them.
MAX_POOL_BLOCKS: Final = 2**22
#: Seconds of a grant's validity at most: event loops cannot count as far as a float can.
MAX_VALID_S: Final = 1e9


class Message(BaseModel):
    """Base of all messages. `v` is the protocol version of who made it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: int = PROTOCOL_VERSION


class Grant(Message):
    """Blocks of the receiver's pool that one transfer may write until it expires (R8).

    Token `first_token + i` goes to row `i % block_size` of `blocks[i // block_size]`. The writer
    posts `chunk_blocks` blocks at a time; each post is one chunk with one notice. It starts no
    post later than `valid_s` seconds, on its own clock, after the grant reached it.
    """

    op: Literal["grant"] = "grant"
    transfer_id: TransferId
    generation: int = Field(ge=0)
    first_token: Tokens
    blocks: tuple[BlockIndex, ...] = Field(min_length=1)
    block_size: int = Field(gt=0)
    chunk_blocks: int = Field(gt=0, le=MAX_CHUNK_BLOCKS)
    valid_s: float = Field(gt=0, le=MAX_VALID_S)
    #: False for index-based slots: what does not fit this grant can never be sent.
    resumable: bool = True

    @property
    def capacity(self) -> int:
        """Tokens that the granted blocks hold."""
        return len(self.blocks) * self.block_size

    @property
    def end_token(self) -> int:
        return self.first_token + self.capacity

    @property
    def num_chunks(self) -> int:
        return blocks_for(len(self.blocks), self.chunk_blocks)


class Chunk(BaseModel):
    """One post of a grant: which tokens go to which of the receiver's blocks."""

    model_config = ConfigDict(frozen=True)

    generation: int
    index: int
    first_token: int
    num_tokens: int
    blocks: tuple[int, ...]


def chunks_of(grant: Grant, total_tokens: int) -> list[Chunk]:
    """The posts that fill `grant`, given the transfer's length; both sides cut alike."""
    chunks = []
    for index in range(grant.num_chunks):
        skipped = index * grant.chunk_blocks
        first_token = grant.first_token + skipped * grant.block_size
        blocks = grant.blocks[skipped : skipped + grant.chunk_blocks]
        num_tokens = min(len(blocks) * grant.block_size, total_tokens - first_token)
        if num_tokens <= 0:
            break
        used = blocks[: blocks_for(num_tokens, grant.block_size)]
        chunks.append(
            Chunk(
                generation=grant.generation,
                index=index,
                first_token=first_token,
                num_tokens=num_tokens,
                blocks=used,
            )
        )
    return chunks


class ReceiverName(Message):
    """Where a grant's blocks are: a Dynamo instance and the NIXL agent inside it."""

    op: Literal["receiver"] = "receiver"
    instance_id: int
    agent: str = Field(min_length=1)


class Hello(Message):
    """First contact of an encode worker with a prefill worker (R10)."""

    op: Literal["hello"] = "hello"
    layout: Layout
    instance_id: int
    agent: str = Field(min_length=1, max_length=256)


class Welcome(Message):
    """Answer to `Hello`: all an encode worker needs to write into the pool."""

    op: Literal["welcome"] = "welcome"
    layout: Layout
    agent: str = Field(min_length=1)
    metadata: bytes
    base_address: int = Field(gt=0)
    num_blocks: int = Field(gt=0, le=MAX_POOL_BLOCKS)
    memory: Literal["DRAM", "VRAM"]
    device_id: int = Field(ge=0)


class Reserve(Message):
    """Ask for the default grant, before the length is known (R3)."""

    op: Literal["reserve"] = "reserve"
    transfer_id: TransferId
    writer_instance_id: int
    priority: int = 0


class Granted(Message):
    """Blocks were granted, after a wait of `waited_s` seconds.

    `max_prompt_tokens` is the longest prompt that the engine accepts, placeholders expanded.
    """

    op: Literal["granted"] = "granted"
    grant: Grant
    receiver: ReceiverName
    max_prompt_tokens: int = Field(gt=0)
    waited_s: float = Field(default=0.0, ge=0)


class Resume(Message):
    """Ask for room for what remains.

    `wait` False is the try-grant: blocks at once or `NoBlocks` (R4). With `wait` True, the receiver
    waits until every block of the transfer is home and `sent_tokens` have come, those of all its
    grants, then queues it.
    """

    op: Literal["resume"] = "resume"
    transfer_id: TransferId
    sent_tokens: Tokens
    total_tokens: int = Field(gt=0)
    wait: bool


class NoBlocks(Message):
    """A try-grant found no room; the writer goes on with what it has."""

    op: Literal["no_blocks"] = "no_blocks"


class Abort(Message):
    """Give a transfer up. `writer_closed`: the writer has confirmed that nothing is in flight."""

    op: Literal["abort"] = "abort"
    transfer_id: TransferId
    writer_closed: bool


class Forward(Message):
    """A further grant, on its way from the prefill worker to the writer."""

    op: Literal["forward"] = "forward"
    grant: Grant


class Close(Message):
    """Write no more for this transfer; answered once nothing is in flight any more."""

    op: Literal["close"] = "close"
    transfer_id: TransferId


class Ping(Message):
    """Is this worker alive? Answered by `Done`."""

    op: Literal["ping"] = "ping"


class Done(Message):
    """The wish was carried out; there is nothing to return."""

    op: Literal["done"] = "done"


class Refusal(Message):
    """The wish was turned down (`Refused` on the other side)."""

    op: Literal["refusal"] = "refusal"
    reason: Reason
    message: str

    @classmethod
    def of(cls, error: ResumeError) -> "Refusal":
        """Any of our errors as an answer, so that it keeps its meaning on the way."""
        message = str(error)[:MAX_REFUSAL_CHARS]
        if isinstance(error, Refused):
            return cls(reason=error.reason, message=message)
        failed = isinstance(error, TransferFailed)
        return cls(reason=Reason.FAILED if failed else Reason.PROTOCOL, message=message)

    def as_error(self) -> Refused:
        return Refused(self.reason, self.message)


class LentBytes(BaseModel):
    """Where they are in the frontend's process, in NIXL's terms."""

    model_config = ConfigDict(frozen=True, extra="allow")

    addr: int = Field(gt=0)
    size: int = Field(gt=0)


class Lent(BaseModel):
    """Pixels that the frontend has decoded and lets others read until the answer has ended.

    Dynamo's own description, whose further fields are kept for Dynamo's own reader.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    nixl_metadata: str
    nixl_descriptor: LentBytes
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]  # height, width, channels
    dtype: Literal["UINT8"]
    content_hash: str | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _as_many_bytes_as_its_shape(self) -> Self:
        if math.prod(self.shape) != self.nixl_descriptor.size:
            raise ValueError(f"{self.nixl_descriptor.size} bytes for the shape {self.shape}")
        return self


class Media(BaseModel):
    """One media item of a request, as the frontend hands it over.

    An item that is `lent` need not be fetched; its `url` is no more than a name of its content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    url: str = Field(min_length=1)
    # Left out where there is none: version 2 does not know it.
    lent: Lent | None = Field(default=None, exclude_if=lambda value: value is None)


class Encode(Message):
    """Encode one media item and write it into the granted blocks. Answered by a stream.

    `prompt_tokens`: the prompt so far, this item as its one placeholder; with the item expanded
    it must not exceed `max_prompt_tokens`.
    """

    op: Literal["encode"] = "encode"
    transfer_id: TransferId
    media: Media
    grant: Grant
    receiver: ReceiverName
    prompt_tokens: int = Field(gt=0)
    max_prompt_tokens: int = Field(gt=0)

    @model_validator(mode="after")
    def _grant_is_its_own(self) -> Self:
        if self.grant.transfer_id != self.transfer_id:
            raise ValueError("the grant belongs to another transfer")
        return self


class Shape(BaseModel):
    """What an engine must know of an embedding beside its rows, to give them their places.

    Of a video only: `timestamps`, the second of each step of the grid's `t`, where the model's
    prompt spells them (Qwen3-VL); `second_per_grid`, the seconds from one step to the next, where
    its positions depend on that (Qwen2.5-VL).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    total_tokens: int = Field(gt=0)
    grid: Grid
    content_hash: ContentHash
    # Left out where they say nothing: version 2 does not know them.
    timestamps: tuple[Seconds, ...] = Field(default=(), exclude_if=lambda value: not value)
    second_per_grid: Seconds | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _a_timestamp_per_step(self) -> Self:
        if self.timestamps and len(self.timestamps) != self.grid[0]:
            raise ValueError(f"{len(self.timestamps)} timestamps for {self.grid[0]} steps")
        return self

    @property
    def short_hash(self) -> str:
        """The first 16 digits of the content hash, which every version understands."""
        return self.content_hash[:SHORT_HASH_DIGITS]


class Sized(Message, Shape):
    """The embedding's length and grid, known before the vision tower has run."""

    op: Literal["sized"] = "sized"


class Sent(Message):
    """All chunks of one grant are written. `sent_tokens` counts from the embedding's start."""

    op: Literal["sent"] = "sent"
    generation: int
    sent_tokens: int = Field(gt=0)
    num_bytes: int = Field(ge=0)


class Received(Shape):
    """One media item of a `generate` request: the transfer that carries it and its shape."""

    transfer_id: TransferId
    modality: Modality

    @classmethod
    def of(cls, transfer_id: str, modality: Modality, shape: Shape) -> "Received":
        """The item as the encode worker has described it."""
        described = {name: getattr(shape, name) for name in Shape.model_fields}
        return cls(transfer_id=transfer_id, modality=modality, **described)


class ChunkNotice(Message):
    """Aux data of a chunk, delivered by NIXL after the chunk's bytes (R8, R9).

    `checksum`: CRC-32 of the chunk's rows, where the writer sends one (--mm-resume-checksum).
    """

    op: Literal["chunk"] = "chunk"
    transfer_id: TransferId
    generation: int = Field(ge=0)
    chunk: int = Field(ge=0)
    first_token: Tokens
    num_tokens: int = Field(gt=0)
    total_tokens: int = Field(gt=0)
    checksum: int | None = Field(default=None, ge=0, lt=2**32)


PrefillRequest = Annotated[Hello | Reserve | Resume | Abort | Ping, Field(discriminator="op")]
PrefillReply = Annotated[Welcome | Granted | NoBlocks | Done | Refusal, Field(discriminator="op")]
EncodeControl = Annotated[Forward | Close | Ping, Field(discriminator="op")]
EncodeControlReply = Annotated[Done | Refusal, Field(discriminator="op")]
EncodeEvent = Annotated[Sized | Sent | Refusal, Field(discriminator="op")]

PREFILL_REQUEST: TypeAdapter[PrefillRequest] = TypeAdapter(PrefillRequest)
PREFILL_REPLY: TypeAdapter[PrefillReply] = TypeAdapter(PrefillReply)
ENCODE_CONTROL: TypeAdapter[EncodeControl] = TypeAdapter(EncodeControl)
ENCODE_CONTROL_REPLY: TypeAdapter[EncodeControlReply] = TypeAdapter(EncodeControlReply)
PROBE: TypeAdapter[Ping] = TypeAdapter(Ping)
ENCODE_EVENT: TypeAdapter[EncodeEvent] = TypeAdapter(EncodeEvent)
ENCODE: TypeAdapter[Encode] = TypeAdapter(Encode)
CHUNK_NOTICE: TypeAdapter[ChunkNotice] = TypeAdapter(ChunkNotice)
RECEIVED: TypeAdapter[list[Received]] = TypeAdapter(list[Received])
CONTENT_HASHES: TypeAdapter[list[ContentHash]] = TypeAdapter(list[ContentHash])
LOCAL_MEDIA: TypeAdapter[list[Media]] = TypeAdapter(list[Media])

T = TypeVar("T")


def version_of(payload: Any) -> int:
    """In which version to answer a peer: its own, or ours if we do not speak that."""
    version = payload.get("v") if isinstance(payload, dict) else None
    return int(version) if version in SPOKEN else PROTOCOL_VERSION


def version_to_repeat_in(answer: Any) -> int | None:
    """A peer of the release before refuses our version, in its own: that is to be said again."""
    refused = isinstance(answer, Refusal) and answer.reason is Reason.VERSION
    return answer.v if refused and answer.v != PROTOCOL_VERSION else None


def require_known(media: Media, version: int, who: str) -> None:
    """Raises `Refused` for media that a peer of that version cannot take."""
    if (media.modality == "video" or media.lent is not None) and version < VIDEO_VERSION:
        raise Refused(
            Reason.VERSION,
            f"{who} speaks protocol version {version}, which has no videos and nothing decoded: "
            "run the same release of this component on all workers",
        )


def parse(adapter: TypeAdapter[T], payload: Any) -> T:
    """Check a peer's dict. Raises `Refused` for another version, `ProtocolError` otherwise."""
    version = payload.get("v", PROTOCOL_VERSION) if isinstance(payload, dict) else PROTOCOL_VERSION
    if version not in SPOKEN:
        raise Refused(
            Reason.VERSION,
            f"the peer speaks protocol version {version!r:.40}, this worker "
            f"{' and '.join(map(str, SPOKEN))}: "
            "run the same release of this component on all workers",
        )
    try:
        return adapter.validate_python(payload)
    except ValidationError as error:
        raise ProtocolError(_brief(error)) from error


def parse_notice(payload: bytes) -> ChunkNotice:
    """Check a notification's bytes. Raises `ProtocolError`."""
    if len(payload) > MAX_NOTICE_BYTES:
        raise ProtocolError(f"a notice of {len(payload)} bytes, at most {MAX_NOTICE_BYTES} are one")
    try:
        notice = CHUNK_NOTICE.validate_json(payload)
    except ValidationError as error:
        raise ProtocolError(_brief(error)) from error
    if notice.v not in SPOKEN:
        raise ProtocolError(f"notice of protocol version {notice.v}, expected {SPOKEN}")
    return notice


def dump(message: Message, version: int = PROTOCOL_VERSION) -> dict[str, Any]:
    """The dict that travels; bytes stay bytes (Dynamo's codec is msgpack), enums become text.

    `version` is one that the peer speaks. What is nested keeps that of its maker: the notices of a
    grant's chunks are for its receiver.
    """
    fields = message.model_dump() | {"v": version}
    if fields.get("reason") is Reason.DRAINING and version < DRAINING_VERSION:
        fields["reason"] = Reason.OVERLOADED
    if isinstance(message, Hello | Welcome):
        fields["layout"]["protocol_version"] = version
    if isinstance(message, Sized) and version < FULL_HASH_VERSION:
        fields["content_hash"] = message.short_hash
    return {k: v.value if isinstance(v, Reason) else v for k, v in fields.items()}


def _brief(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "message"
    text = f"malformed message: {place:.100}: {first['msg']:.500}"
    return f"{text} ({error.error_count()} problem(s))"
