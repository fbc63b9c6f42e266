# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The settings of a worker: one frozen model that checks itself.

Owns each setting's name, unit, default, flag and environment name. Reads neither the command line
nor the environment: ``args`` does that and builds a ``Settings`` from what it finds.
"""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dynamo.sglang_mm_resume.core.layout import MAX_CHUNK_BLOCKS


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """How one setting is spelled for an operator, and what it means.

    ``unit`` says what is counted or chosen, as a plural noun where that is a number. Numbers must
    be above zero and at most ``maximum`` where there is one; texts must match ``pattern``.
    """

    flag: str
    env: str
    unit: str
    text: str
    maximum: int | None = None
    pattern: str = ".*"

    @property
    def label(self) -> str:
        """Both spellings, as every error message names them."""
        return f"{self.flag} ({self.env})"

    def complaint(self, value: float) -> str | None:
        """Say what is wrong with the number `value`; None where it is acceptable."""
        quantity = self.unit if self.unit.startswith("fraction") else f"number of {self.unit}"
        if not (value > 0 and math.isfinite(value)):
            return f"{value} is not a positive {quantity}"
        if self.maximum is not None and value > self.maximum:
            return f"{value} is above {self.maximum}, the largest {quantity} there may be"
        return None


def _new(
    name: str, unit: str, text: str, maximum: int | None = None, pattern: str = ".*"
) -> SettingSpec:
    """A setting that the original documents do not have: both spellings follow from its name."""
    flag = "--mm-resume-" + name.replace("_", "-")
    return SettingSpec(flag, "DYN_SGL_MM_RESUME_" + name.upper(), unit, text, maximum, pattern)


USE_BLOCK_ALLOCATOR = SettingSpec(
    "--use-block-allocator",
    "SGLANG_USE_BLOCK_ALLOCATOR",
    "yes or no",
    "Allocate the buffer pool in blocks, so that an embedding of any length is carried. "
    "Without it: fixed slots, no resume, and a longer embedding is refused.",
)
BLOCK_SIZE = SettingSpec(
    "--multimodal-block-size",
    "SGLANG_MULTIMODAL_BLOCK_SIZE",
    "tokens",
    "Tokens per block of the buffer pool; the same on every worker.",
    maximum=65536,
)
DEFAULT_BLOCKS = SettingSpec(
    "--default-multimodal-blocks",
    "SGLANG_DEFAULT_MULTIMODAL_BLOCKS",
    "blocks",
    "Blocks granted to an embedding before its length is known.",
)
ADAPTIVE_DEFAULT = SettingSpec(
    "--adaptive-default",
    "DYN_SGL_MM_RESUME_ADAPTIVE_DEFAULT",
    "yes or no",
    "Prefill worker: a default grant has the blocks that three of four recent embeddings need, "
    "an eighth of the pool at most; the configured blocks serve until there were 16.",
)
POOL_BUFFERS = SettingSpec(
    "--embedding-cache-buffer-size",
    "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE",
    "default buffers",
    "Size of the buffer pool: it has this many times the blocks of a default grant.",
)
SLOT_TOKENS = _new(
    "slot_tokens",
    "tokens",
    "Tokens per fixed slot; only without the block allocator. "
    "Unset, a slot holds the longest embedding that the model can produce.",
)
THREAD_POOL_SIZE = SettingSpec(
    "--disaggregation-thread-pool-size",
    "SGLANG_DISAGGREGATION_THREAD_POOL_SIZE",
    "threads",
    "Threads for loading media, preprocessing and copying.",
)
QUEUE_SIZE = SettingSpec(
    "--disaggregation-queue-size",
    "SGLANG_DISAGGREGATION_QUEUE_SIZE",
    "transfers",
    "Chunks that an encode worker stages or writes at the same time for one prefill worker.",
)
BOOTSTRAP_TIMEOUT = SettingSpec(
    "--mm-bootstrap-timeout",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT",
    "seconds",
    "Time that a request waits for a peer or for blocks.",
)
HEARTBEAT_INTERVAL = SettingSpec(
    "--mm-heartbeat-interval",
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL",
    "seconds",
    "Time between two probes of a peer with a transfer in flight.",
)
HEARTBEAT_MAX_FAILURES = SettingSpec(
    "--mm-heartbeat-max-failures",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE",
    "probes",
    "Failed probes in a row after which a peer counts as dead.",
)
POOL_DEVICE = _new(
    "pool_device",
    "auto, cpu, cuda or cuda:N",
    "Device of the buffer pool; auto takes the worker's first GPU where it has RDMA, and host "
    "memory elsewhere.",
    pattern=r"auto|cpu|cuda(:\d+)?",
)
ENCODE_FALLBACK = SettingSpec(
    "--encode-fallback",
    "DYN_SGL_MM_RESUME_ENCODE_FALLBACK",
    "fail or local",
    "What becomes of a request with media while no encode worker is alive: 503, or the prefill "
    "worker's engine encodes them by itself.",
    pattern="fail|local",
)
ROUTER_MODE = SettingSpec(
    "--router-mode",
    "DYN_SGL_MM_RESUME_ROUTER_MODE",
    "least-outstanding or kv",
    "Processor: a request goes to the prefill worker with the least outstanding work, or to the "
    "one that Dynamo's KvRouter chooses by what is cached there; for that, prefill workers need "
    "--kv-events-config.",
    pattern="least-outstanding|kv",
)
ENCODE_MIN_TOKENS = SettingSpec(
    "--encode-min-tokens",
    "DYN_SGL_MM_RESUME_ENCODE_MIN_TOKENS",
    "image tokens",
    "Processor: pictures of a request that has fewer image tokens than this are encoded by the "
    "prefill worker's engine, those of others by encode workers. Unset: not by this measure.",
)
ENCODE_MIN_ITEMS = SettingSpec(
    "--encode-min-items",
    "DYN_SGL_MM_RESUME_ENCODE_MIN_ITEMS",
    "pictures",
    "The same for a request that has fewer pictures than this. With both, a request goes to "
    "encode workers as soon as it reaches one of them.",
)
LOCAL_VISION = SettingSpec(
    "--local-vision",
    "DYN_SGL_MM_RESUME_LOCAL_VISION",
    "yes or no",
    "Prefill worker: the engine has its vision tower. Without it, its memory is free for KV, and "
    "encode workers encode everything.",
)
MAX_ASSEMBLED = _new(
    "max_assembled_mib",
    "MiB",
    "Embeddings assembled or being assembled on a prefill worker; beyond it clients get 503. "
    "A quarter of this memory may stay in use between requests.",
)
MAX_WAITING_TRANSFERS = _new(
    "max_waiting_transfers",
    "transfers",
    "Reservations and resumes that wait for blocks on a prefill worker; beyond it clients get 503.",
)
MAX_ENCODES = _new(
    "max_encodes",
    "media items",
    "Media items accepted at the same time by an encode worker; beyond it clients get 503.",
)
ENCODE_BATCH = _new(
    "encode_batch",
    "pictures",
    "Pictures that the vision tower encodes together, if so many wait. Unset: 8 on a GPU, and 1 on "
    "a CPU, where pictures take longer together than one after the other.",
)
MAX_REQUESTS = _new(
    "max_requests",
    "requests",
    "Requests under way at the same time in a processor; beyond it clients get 503.",
)
MAX_MEDIA_ITEMS = _new(
    "max_media_items",
    "media items",
    "Media items that one request may have; checked by the frontend and the processor.",
)
CHUNK_BLOCKS = _new(
    "chunk_blocks",
    "blocks",
    "Blocks per posted NIXL write.",
    maximum=MAX_CHUNK_BLOCKS,
)
EMBEDDING_CACHE = _new(
    "embedding_cache",
    "yes or no",
    "Encode worker: finished embeddings stay in the pool until their blocks are needed, so that "
    "a picture which comes again is not encoded again. Processor: such a picture goes to the "
    "encode worker that had it last.",
)
CHECKSUM = _new(
    "checksum",
    "yes or no",
    "Encode worker: send a checksum of the rows with each chunk. Prefill worker: compare it with "
    "the rows that arrived, and refuse rows that are not finite; the client gets 503.",
)
DRAIN = _new(
    "drain_s",
    "seconds",
    "Time from the death of a writer to the reuse of blocks that it may still have been writing.",
)
SHUTDOWN_GRACE = _new(
    "shutdown_grace_s",
    "seconds",
    "Time that a worker which gets SIGTERM gives to the requests that it has begun.",
)
MAX_QUARANTINED_FRACTION = _new(
    "max_quarantined_fraction",
    "fraction of the pool",
    "Quarantined fraction of the buffer pool above which a worker turns unready.",
    maximum=1,
)


class Settings(BaseModel):
    """Everything an operator may set, validated.

    Raises pydantic's ValidationError at construction for an unknown name, a wrong type, a value
    out of range, or settings that contradict each other; the message of the last two names the
    flag and the environment name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    use_block_allocator: Annotated[bool, USE_BLOCK_ALLOCATOR] = True
    block_size: Annotated[int, BLOCK_SIZE] = 128
    default_blocks: Annotated[int, DEFAULT_BLOCKS] = 8
    adaptive_default: Annotated[bool, ADAPTIVE_DEFAULT] = False
    pool_buffers: Annotated[int, POOL_BUFFERS] = 64
    slot_tokens: Annotated[int | None, SLOT_TOKENS] = None
    thread_pool_size: Annotated[int, THREAD_POOL_SIZE] = 12
    queue_size: Annotated[int, QUEUE_SIZE] = 4
    bootstrap_timeout_s: Annotated[float, BOOTSTRAP_TIMEOUT] = 30.0
    heartbeat_interval_s: Annotated[float, HEARTBEAT_INTERVAL] = 5.0
    heartbeat_max_failures: Annotated[int, HEARTBEAT_MAX_FAILURES] = 2
    pool_device: Annotated[str, POOL_DEVICE] = "auto"
    encode_fallback: Annotated[str, ENCODE_FALLBACK] = "fail"
    router_mode: Annotated[str, ROUTER_MODE] = "least-outstanding"
    encode_min_tokens: Annotated[int | None, ENCODE_MIN_TOKENS] = None
    encode_min_items: Annotated[int | None, ENCODE_MIN_ITEMS] = None
    local_vision: Annotated[bool, LOCAL_VISION] = True
    max_assembled_mib: Annotated[int, MAX_ASSEMBLED] = 2048
    max_waiting_transfers: Annotated[int, MAX_WAITING_TRANSFERS] = 256
    max_encodes: Annotated[int, MAX_ENCODES] = 64
    encode_batch: Annotated[int | None, ENCODE_BATCH] = None
    max_requests: Annotated[int, MAX_REQUESTS] = 512
    max_media_items: Annotated[int, MAX_MEDIA_ITEMS] = 64
    chunk_blocks: Annotated[int, CHUNK_BLOCKS] = 16
    embedding_cache: Annotated[bool, EMBEDDING_CACHE] = True
    checksum: Annotated[bool, CHECKSUM] = False
    drain_s: Annotated[float, DRAIN] = 1.0
    shutdown_grace_s: Annotated[float, SHUTDOWN_GRACE] = 30.0
    max_quarantined_fraction: Annotated[float, MAX_QUARANTINED_FRACTION] = 0.5

    @property
    def pool_blocks(self) -> int:
        """Blocks in the buffer pool."""
        return self.pool_buffers * self.default_blocks

    @property
    def default_tokens(self) -> int:
        """Tokens that fit a default grant."""
        return self.default_blocks * self.block_size

    @property
    def engine_encodes(self) -> tuple[SettingSpec, ...]:
        """The settings in force that have the prefill worker's engine encode pictures."""
        in_force = {
            ENCODE_FALLBACK: self.encode_fallback == "local",
            ENCODE_MIN_TOKENS: self.encode_min_tokens is not None,
            ENCODE_MIN_ITEMS: self.encode_min_items is not None,
        }
        return tuple(spec for spec, set_ in in_force.items() if set_)

    @property
    def max_kept_bytes(self) -> int:
        """Host memory that assembled embeddings have used, and that stays for the next ones."""
        return self.max_assembled_mib * 2**20 // 4

    @property
    def limits(self) -> dict[str, float]:
        """Every bound that may turn a request away (R7), by name, for /metrics."""
        return {name: value for name, value in self if name.startswith("max_")}

    @field_validator("*")
    @classmethod
    def _in_range(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        spec = spec_of(str(info.field_name))
        complaint = spec.complaint(value)
        if complaint is not None:
            raise refusal(spec, complaint)
        return value

    @field_validator("pool_device", "encode_fallback", "router_mode")
    @classmethod
    def _one_of(cls, value: str, info: ValidationInfo) -> str:
        spec = spec_of(str(info.field_name))
        if not re.fullmatch(spec.pattern, value):
            raise refusal(spec, f"{value!r} is not {spec.unit}")
        return value

    @model_validator(mode="after")
    def _only_grants_of_blocks_adapt(self) -> Self:
        if self.adaptive_default and not self.use_block_allocator:
            raise refusal(
                ADAPTIVE_DEFAULT,
                f"means nothing with fixed slots; leave it out, or use {USE_BLOCK_ALLOCATOR.label}",
            )
        return self

    @model_validator(mode="after")
    def _who_encodes_has_a_tower(self) -> Self:
        if not self.local_vision and self.engine_encodes:
            raise refusal(
                LOCAL_VISION,
                f"without it, the engine cannot encode: leave {self.engine_encodes[0].label} out",
            )
        return self

    @model_validator(mode="after")
    def _slots_only_without_blocks(self) -> Self:
        if self.use_block_allocator and self.slot_tokens is not None:
            off = f"turn {USE_BLOCK_ALLOCATOR.label} off"
            raise refusal(
                SLOT_TOKENS, f"means nothing with the block allocator; leave it out, or {off}"
            )
        return self


def spec_of(name: str) -> SettingSpec:
    """The spellings, unit and meaning of the setting `name`.

    Raises KeyError for a name that is not a setting.
    """
    metadata = Settings.model_fields[name].metadata
    return next(item for item in metadata if isinstance(item, SettingSpec))


def refusal(spec: SettingSpec, complaint: str) -> PydanticCustomError:
    """The error that refuses a value of the setting `spec`, to raise from a validator."""
    # The text is passed as data: in a template of its own, braces would be read as fields.
    return PydanticCustomError("setting", "{text}", {"text": f"{spec.label}: {complaint}"})
