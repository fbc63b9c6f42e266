# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Every metric of every worker, and how they come from its status to its system port.

One source of truth: a scrape reads the same dict that `/engine/mm_resume/status` returns, and
`CATALOGUE` says what becomes of it. The table in docs/metrics.md is generated from it too. Labels
are bounded: a state or a reason, never an id. Every series is there, with 0, from the start.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from dynamo.common.utils.prometheus import register_engine_metrics_callback

from dynamo.sglang_mm_resume.core.errors import Reason
from dynamo.sglang_mm_resume.core.receiver import Oddity

PREFIX: Final = "dynamo_component_mm_resume_"

Status = dict[str, Any]

PROCESSOR: Final = ("processor",)
ENCODE: Final = ("encode",)
PREFILL: Final = ("prefill",)
POOLS: Final = ("encode", "prefill")
ENGINES: Final = ("prefill", "decode")
LIMITED: Final = ("processor", "encode", "prefill")
ALL: Final = ("processor", "encode", "prefill", "decode")

_REASONS: Final = tuple(reason.value for reason in Reason)
_ODDITIES: Final = tuple(oddity.value for oddity in Oddity)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `roles`: of the workers that have it.

    `labels`: names and all values; none where the worker's status names them. `source`: where that
    status has the figures, in keys joined by dots; empty: under the metric's name, in `totals`
    unless it is a gauge.
    """

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    roles: Sequence[str]
    unit: str
    text: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source: str = ""

    @property
    def full_name(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")

    def figures_in(self, status: Status) -> Any:
        """A number or a histogram, in one dict per label."""
        found: Any = status
        source = self.source or (self.name if self.kind == "gauge" else f"totals.{self.name}")
        for key in source.split("."):
            found = found[key]
        return found


CATALOGUE: Final = (
    # Memory.
    Metric(
        "gauge",
        "pool_blocks",
        POOLS,
        "blocks",
        "Blocks of the buffer pool by state; cached ones are free for whoever needs blocks.",
        {"state": ("free", "held", "cached", "quarantined")},
        "pool",
    ),
    Metric("gauge", "pool_size_blocks", POOLS, "blocks", "All blocks of it.", {}, "pool.total"),
    Metric(
        "gauge",
        "pool_peak_used_blocks",
        POOLS,
        "blocks",
        "Most blocks of it that were not free at any time, cached ones included.",
        {},
        "pool.peak_used",
    ),
    Metric("gauge", "default_blocks", PREFILL, "blocks", "Blocks of a default grant."),
    Metric(
        "gauge", "assembled_tokens", PREFILL, "tokens", "Tokens of embeddings here or on their way."
    ),
    # Work under way.
    Metric(
        "gauge",
        "limit",
        LIMITED,
        "see name",
        "Bounds beyond which clients get 503, as configured.",
        {"name": ()},
        "limits",
    ),
    Metric("gauge", "requests_live", PROCESSOR, "requests", "Requests under way.", {}, "requests"),
    Metric(
        "gauge",
        "items_waiting",
        PROCESSOR,
        "items",
        "Pictures, or requests, that wait for a worker of this role that has room.",
        {"role": ()},
    ),
    Metric("gauge", "transfers_live", POOLS, "transfers", "Transfers not closed.", {}, "transfers"),
    Metric("gauge", "waiting", PREFILL, "transfers", "Transfers queued for blocks."),
    Metric(
        "gauge",
        "peak_transfers",
        PREFILL,
        "transfers",
        "Most transfers at once that had blocks or wanted some.",
    ),
    Metric(
        "gauge", "encodes_waiting", ENCODE, "pictures", "Pictures that wait for the vision tower."
    ),
    Metric("gauge", "writes_in_flight", ENCODE, "writes", "NIXL writes posted and not ended."),
    Metric(
        "gauge", "embeddings_offered", ENGINES, "embeddings", "Embeddings handed to the engine."
    ),
    Metric(
        "gauge", "engine_requests", ENGINES, "requests", "Requests that the engine has not ended."
    ),
    Metric("gauge", "tasks", LIMITED, "tasks", "Background tasks."),
    # The processor.
    Metric("counter", "requests", PROCESSOR, "requests", "Requests taken from the frontend."),
    Metric("counter", "stopped", PROCESSOR, "requests", "Requests whose client hung up."),
    Metric(
        "counter",
        "errors",
        PROCESSOR,
        "requests",
        "Requests that ended in an error; downstream: one of the engine's.",
        {"kind": (*_REASONS, "downstream")},
    ),
    Metric(
        "counter",
        "prefill_retries",
        PROCESSOR,
        "requests",
        "Requests sent to a second prefill worker.",
    ),
    Metric(
        "counter",
        "answers_continued",
        PROCESSOR,
        "answers",
        "Answers that were under way when their prefill worker was lost, and went on at another.",
    ),
    Metric(
        "counter",
        "routed",
        PROCESSOR,
        "requests",
        "Requests for which the KV router has chosen the prefill worker (`--router-mode kv`).",
    ),
    Metric(
        "counter", "routed_hits", PROCESSOR, "requests", "Those whose beginning is cached there."
    ),
    Metric("counter", "routed_tokens", PROCESSOR, "tokens", "Tokens of their prompts."),
    Metric("counter", "routed_overlap_tokens", PROCESSOR, "tokens", "Those that are cached there."),
    Metric(
        "counter", "routing_failures", PROCESSOR, "requests", "Requests for which it chose nobody."
    ),
    Metric(
        "counter",
        "encode_fallbacks",
        PROCESSOR,
        "requests",
        "Requests whose pictures the engine encoded, for want of an encode worker.",
    ),
    Metric(
        "counter", "encode_retries", PROCESSOR, "items", "Pictures sent to a second encode worker."
    ),
    Metric("counter", "items", PROCESSOR, "items", "Pictures handed over."),
    Metric(
        "counter",
        "items_local",
        PROCESSOR,
        "items",
        "Pictures that were small enough for the engine to encode them (`--encode-min-tokens`, "
        "`--encode-min-items`).",
    ),
    Metric("counter", "rounds", PROCESSOR, "rounds", "Grants that pictures handed over took."),
    Metric("counter", "bytes", PROCESSOR, "bytes", "Bytes of the embeddings handed over."),
    Metric(
        "histogram",
        "first_token_seconds",
        PROCESSOR,
        "seconds",
        "From a request's arrival to its first token.",
        {"media": ("yes", "no")},
    ),
    Metric(
        "histogram",
        "stage_seconds",
        PROCESSOR,
        "seconds",
        "Of each picture: reserve (blocks), load (until its size is known), encode (vision tower "
        "and writes); of each request: first_token (since it went to the prefill worker).",
        {"stage": ("reserve", "load", "encode", "first_token")},
    ),
    # Encode workers.
    Metric(
        "histogram",
        "load_seconds",
        ENCODE,
        "seconds",
        "From a picture's arrival until its size is known: download, decoding, preprocessing.",
    ),
    Metric("counter", "encodes", ENCODE, "pictures", "Pictures that the vision tower encoded."),
    Metric(
        "counter",
        "encodes_shared",
        ENCODE,
        "items",
        "Items that joined the encoding of an equal one.",
    ),
    Metric("histogram", "encode_seconds", ENCODE, "seconds", "A batch in the vision tower."),
    Metric("histogram", "encode_batch_items", ENCODE, "pictures", "Pictures of a batch."),
    Metric("counter", "cache_hits", ENCODE, "items", "Items whose embedding was in the pool."),
    Metric("counter", "cache_misses", ENCODE, "items", "Items whose embedding was not."),
    Metric("counter", "cache_evictions", ENCODE, "embeddings", "Embeddings that had to make room."),
    Metric("counter", "chunks", ENCODE, "chunks", "Chunks written."),
    Metric("counter", "bytes_written", ENCODE, "bytes", "Bytes of the rows written."),
    Metric("histogram", "chunk_write_seconds", ENCODE, "seconds", "A NIXL write, post to end."),
    Metric(
        "histogram", "chunk_bytes_per_second", ENCODE, "bytes per second", "Speed of a NIXL write."
    ),
    Metric(
        "counter",
        "write_failures",
        ENCODE,
        "writes",
        "Writes that failed, or were not posted in time.",
    ),
    # Prefill workers.
    Metric("counter", "transfers", POOLS, "transfers", "Transfers begun."),
    Metric(
        "histogram",
        "buffer_wait_seconds",
        PREFILL,
        "seconds",
        "In the queue for blocks, of each default grant and of each resume that got blocks.",
        {"kind": ("reserve", "resume")},
    ),
    Metric(
        "counter",
        "resumes",
        PREFILL,
        "resumes",
        "Resumes that queued for blocks, as a try found none.",
    ),
    Metric(
        "counter",
        "embeddings_assembled",
        PREFILL,
        "embeddings",
        "Embeddings of which every token has arrived.",
    ),
    Metric(
        "counter",
        "embeddings_resumed",
        PREFILL,
        "embeddings",
        "Those that took more than one round.",
    ),
    Metric(
        "histogram", "embedding_tokens", PREFILL, "tokens", "Length of each embedding assembled."
    ),
    Metric(
        "histogram",
        "embedding_rounds",
        PREFILL,
        "rounds",
        "Grants that each embedding assembled took.",
    ),
    Metric("counter", "bytes_assembled", PREFILL, "bytes", "Bytes copied out of the pool."),
    Metric("counter", "aborts", PREFILL, "transfers", "Live transfers that a processor gave up."),
    Metric(
        "counter",
        "reasons",
        PREFILL,
        "transfers",
        "Transfers that ended without their embedding.",
        {"kind": _REASONS},
    ),
    Metric(
        "counter",
        "oddities",
        PREFILL,
        "notices",
        "Notices that changed nothing: late, stale, repeated, unknown or misfitting.",
        {"kind": _ODDITIES},
        "oddities",
    ),
    Metric("counter", "malformed_notices", PREFILL, "notices", "Notices that could not be read."),
    Metric(
        "counter",
        "stranger_notices",
        PREFILL,
        "notices",
        "Notices of agents that never said hello.",
    ),
    # Peers.
    Metric(
        "counter",
        "peer_probes",
        ("processor", "prefill"),
        "probes",
        "Probes of workers that are silent in a transfer or an answer.",
        {"peer": (), "result": ("answered", "failed")},
    ),
    Metric(
        "counter",
        "refusals",
        ("encode", "prefill", "decode"),
        "messages",
        "Messages and requests that were refused.",
        {"kind": _REASONS},
        "refusals",
    ),
    Metric(
        "counter",
        "reregistrations",
        ALL,
        "times",
        "Registrations of a worker that discovery had lost.",
    ),
)


def publish_metrics(endpoint: Any, status: Callable[[], Status], model: str, prefix: str) -> None:
    """Add the worker's metrics to its `/metrics`. `prefix` is `namespace.component`.

    After an engine has started: what imports prometheus_client before leaves SGLang's own metrics
    (--enable-metrics) without those of this process.
    """
    from dynamo.sglang_mm_resume.exposition import registry_of

    namespace, component = prefix.rsplit(".", 1)
    register_engine_metrics_callback(
        endpoint,
        registry_of(status),
        metric_prefix_filters=[PREFIX],
        namespace_name=namespace,
        component_name=component,
        endpoint_name="generate",
        model_name=model,
    )
