# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""For every alert, series on which it fires, and series close to them on which it does not.

A sample a minute, in promtool's notation: `5x9` is ten times 5, `0+3x9` rises by 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

PREFIX: Final = "dynamo_component_mm_resume_"
MINUTES_PER_DAY: Final = 24 * 60

Series = Mapping[str, str]
Labels = Mapping[str, str]

GRAPH: Final = {"dynamo_namespace": "g", "model": "m"}
PREFILL: Final = {**GRAPH, "dynamo_component": "prefill", "worker_id": "1a", "instance": "p:9090"}
ENCODER: Final = {**GRAPH, "dynamo_component": "encoder", "worker_id": "2b", "instance": "e:9090"}
PROCESSOR: Final = {
    **GRAPH,
    "dynamo_component": "processor",
    "worker_id": "3c",
    "instance": "x:9090",
}


@dataclass(frozen=True)
class Case:
    """`at`: minute at which the alert fires on each of `fires`, with these labels beside its
    severity, and not on any of `quiet`. `pending_at`: an earlier one, at which it still waits.
    """

    alert: str
    summary: str
    labels: Labels
    fires: Sequence[Series]
    quiet: Sequence[Series]
    at: int = 30
    pending_at: int | None = None


def named(name: str, labels: Labels, **more: str) -> str:
    """A series of one of our metrics."""
    return series(PREFIX + name, labels, **more)


def series(name: str, labels: Labels, **more: str) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in {**labels, **more}.items())
    return f"{name}{{{pairs}}}"


def steady(value: float, minutes: int = 60) -> str:
    return f"{value:g}x{minutes}"


def rising(by: float, minutes: int = 60) -> str:
    return f"0+{by:g}x{minutes}"


def jump(at: int, by: float = 1, minutes: int = 60) -> str:
    """A counter at 0 that rises once."""
    return f"0x{at} {by:g}x{minutes - at}"


def turning(first: float, then: float, at: int, minutes: int) -> str:
    """A counter whose increase per minute changes."""
    return f"0+{first:g}x{at} {first * at + then:g}+{then:g}x{minutes - at}"


def histogram(name: str, labels: Labels, counts: Mapping[str, str], **more: str) -> Series:
    """Cumulative buckets by upper bound; `+Inf` is the count as well."""
    buckets = {
        named(f"{name}_bucket", labels, **more, le=bound): values
        for bound, values in counts.items()
    }
    return buckets | {named(f"{name}_count", labels, **more): counts["+Inf"]}


# --- Objectives ---


def _embeddings(assembled: float, resumed: float) -> Series:
    return {
        named("embeddings_assembled_total", PREFILL): rising(assembled),
        named("embeddings_resumed_total", PREFILL): rising(resumed),
    }


def _waits(quick: float, slow: float) -> Series:
    counts = {
        "0.005": rising(0),
        "0.01": rising(quick),
        "0.025": rising(quick + slow),
        "+Inf": rising(quick + slow),
    }
    none = {bound: rising(0) for bound in counts}
    return {
        **histogram("buffer_wait_seconds", PREFILL, counts, kind="resume"),
        **histogram("buffer_wait_seconds", PREFILL, none, kind="reserve"),
    }


def _pool(
    labels: Labels, *, free: int = 0, held: int = 0, cached: int = 0, lost: int = 0
) -> Series:
    states = {"free": free, "held": held, "cached": cached, "quarantined": lost}
    blocks = {
        named("pool_blocks", labels, state=state): steady(count) for state, count in states.items()
    }
    return {**blocks, named("pool_size_blocks", labels): steady(sum(states.values()))}


def _peak(labels: Labels, used: int, transfers: int) -> Series:
    minutes = MINUTES_PER_DAY + 60
    return {
        named("pool_peak_used_blocks", labels): steady(used, minutes),
        named("pool_size_blocks", labels): steady(100, minutes),
        named("transfers_total", labels): steady(transfers, minutes),
    }


def _first_tokens(usual: str, since: str, per_minute: float = 60, media: str = "yes") -> Series:
    """A day of first tokens below one bound, then an hour below another."""
    bounds = ("0.25", "0.5", "1", "2.5", "5", "+Inf")
    end = MINUTES_PER_DAY + 60
    first = dict(zip(bounds, accumulate(float(b == usual) for b in bounds), strict=True))
    then = dict(zip(bounds, accumulate(float(b == since) for b in bounds), strict=True))
    counts = {
        bound: turning(first[bound] * per_minute, then[bound] * per_minute, MINUTES_PER_DAY, end)
        for bound in bounds
    }
    return histogram("first_token_seconds", PROCESSOR, counts, media=media)


OBJECTIVES: Final = (
    Case(
        "MmResumeResumeRateHigh",
        "g: 30% of the embeddings of m need a second grant",
        GRAPH,
        fires=[_embeddings(4, 1.2)],
        quiet=[_embeddings(4, 0.96), _embeddings(3, 3)],
        pending_at=15,
    ),
    Case(
        "MmResumeBufferWaitLong",
        "g: one transfer in a hundred waits 15ms or longer for blocks of p:9090",
        PREFILL,
        fires=[_waits(7.88, 0.12)],
        quiet=[_waits(7.96, 0.04), _waits(0, 6)],
        pending_at=18,
        at=40,
    ),
    Case(
        "MmResumePoolNearlyFull",
        "g: 85% of the pool of p:9090 (prefill) are in use",
        PREFILL,
        fires=[_pool(PREFILL, free=10, held=70, cached=5, lost=15)],
        quiet=[_pool(PREFILL, free=1, held=60, cached=24, lost=15)],
        pending_at=5,
    ),
    Case(
        "MmResumePoolOversized",
        "g: never more than 20% of the pool of p:9090 were in use",
        PREFILL,
        fires=[_peak(PREFILL, 20, 20_000)],
        quiet=[_peak(PREFILL, 30, 20_000), _peak(PREFILL, 20, 9_000), _peak(ENCODER, 20, 20_000)],
        at=MINUTES_PER_DAY + 30,
        pending_at=MINUTES_PER_DAY - 30,
    ),
    Case(
        "MmResumeFirstTokenSlow",
        "g: first tokens of requests with pictures take 2.425s (95th percentile), "
        "twice as long as usual",
        {**GRAPH, "media": "yes"},
        fires=[_first_tokens("1", "2.5", per_minute=2)],
        quiet=[
            _first_tokens("5", "5"),
            _first_tokens("0.25", "1"),
            _first_tokens("1", "2.5", per_minute=1),
            _first_tokens("1", "2.5", media="no"),
        ],
        at=MINUTES_PER_DAY + 40,
        pending_at=MINUTES_PER_DAY + 10,
    ),
)


# --- Requests ---


def _requests(per_minute: float = 100, **errors: float) -> Series:
    counts = {"failed": 0.0, **errors}
    return {
        named("requests_total", PROCESSOR): rising(per_minute),
        **{named("errors_total", PROCESSOR, kind=k): rising(v) for k, v in counts.items()},
    }


def _refused(kind: str) -> Series:
    return {named("refusals_total", PREFILL, kind=kind): jump(25, 2)}


def _retries(encode: float, prefill: float) -> Series:
    return {
        named("requests_total", PROCESSOR): rising(100),
        named("encode_retries_total", PROCESSOR): rising(encode),
        named("prefill_retries_total", PROCESSOR): rising(prefill),
    }


def _cache(hits: tuple[float, float], misses: tuple[float, float]) -> Series:
    """Per minute: for a day, and for the two hours after it."""
    at, end = MINUTES_PER_DAY, MINUTES_PER_DAY + 120
    return {
        named("cache_hits_total", ENCODER): turning(*hits, at, end),
        named("cache_misses_total", ENCODER): turning(*misses, at, end),
    }


REQUESTS: Final = (
    Case(
        "MmResumeRefusingRequests",
        "g: 6% of the requests for m are refused with 503",
        GRAPH,
        fires=[_requests(overloaded=6), _requests(overloaded=3, timeout=3, bad_request=9)],
        quiet=[_requests(overloaded=4, bad_request=50, failed=50)],
        pending_at=5,
    ),
    Case(
        "MmResumeRequestsFailing",
        "g: 2% of the requests for m fail, through no fault of the client",
        GRAPH,
        fires=[_requests(failed=2), _requests(downstream=1, internal=1, overloaded=50)],
        quiet=[_requests(failed=0.5, overloaded=50, timeout=9, bad_request=20, too_long=9)],
        pending_at=5,
    ),
    Case(
        "MmResumeVersionMismatch",
        "g: workers do not fit together, seen by prefill",
        {**GRAPH, "dynamo_component": "prefill"},
        fires=[_refused("version"), _refused("layout")],
        quiet=[_refused("overloaded"), _refused("protocol")],
    ),
    Case(
        "MmResumeRetries",
        "g: 2% of the requests for m are tried again elsewhere",
        GRAPH,
        fires=[_retries(2, 0), _retries(1, 1)],
        quiet=[_retries(0.5, 0.4)],
        pending_at=9,
    ),
    Case(
        "MmResumeEncodedByEngine",
        "g: the engines encode pictures themselves, as no encode worker is alive",
        GRAPH,
        fires=[{named("encode_fallbacks_total", PROCESSOR): rising(1)}],
        quiet=[{named("encode_fallbacks_total", PROCESSOR): steady(7)}],
        pending_at=4,
    ),
    Case(
        "MmResumeEncodeWorkersBusy",
        "g: 3 pictures wait for an encode worker with room",
        GRAPH,
        fires=[{named("items_waiting", PROCESSOR, role="encode"): steady(3)}],
        quiet=[
            {named("items_waiting", PROCESSOR, role="prefill"): steady(3)},
            {named("items_waiting", PROCESSOR, role="encode"): "3x25 0 3x30"},
        ],
        pending_at=5,
    ),
    Case(
        "MmResumeCacheHitRateCollapsed",
        "g: only 10% of the pictures are found in the embedding cache, "
        "less than half of the day before",
        GRAPH,
        fires=[_cache((1.5, 0.5), (3.5, 4.5))],
        quiet=[
            _cache((1.5, 1), (3.5, 4)),
            _cache((0.9, 0.2), (5, 5)),
            _cache((3, 0.2), (7, 2)),
        ],
        at=MINUTES_PER_DAY + 80,
        pending_at=MINUTES_PER_DAY + 40,
    ),
)


# --- Transfers ---


def _quarantine_limit(lost: int) -> Series:
    limits = {"max_quarantined_fraction": 0.5, "max_encodes": 64}
    named_limits = {
        named("limit", {**PREFILL, "name": name}): steady(value) for name, value in limits.items()
    }
    return {**_pool(PREFILL, free=100 - lost, lost=lost), **named_limits}


def _endings(failed: float, aborts: float) -> Series:
    return {
        named("transfers_total", PREFILL): rising(100),
        named("reasons_total", PREFILL, kind="failed"): rising(failed),
        named("reasons_total", PREFILL, kind="timeout"): rising(0),
        named("aborts_total", PREFILL): rising(aborts),
    }


def _writes(failed: float) -> Series:
    return {
        named("write_failures_total", ENCODER): rising(failed),
        named("chunks_total", ENCODER): rising(100 - failed),
    }


def _oddities(**counts: str) -> Series:
    return {
        named("oddities_total", PREFILL, kind="late"): rising(10),
        named("oddities_total", PREFILL, kind="stale_generation"): counts.get("stale", steady(1)),
        named("malformed_notices_total", PREFILL): counts.get("malformed", steady(1)),
        named("stranger_notices_total", PREFILL): counts.get("stranger", steady(1)),
    }


def _bandwidth(usual: str, *since: str, chunk_bytes: float = 2**20) -> Series:
    """100 chunks a minute; a day below one bound, then an hour below others, equally shared."""
    bounds = ("1e+08", "1e+09", "2.5e+09", "5e+09", "+Inf")
    at, end = MINUTES_PER_DAY, MINUTES_PER_DAY + 60
    first = dict(zip(bounds, accumulate(100.0 * (b == usual) for b in bounds), strict=True))
    shares = (100.0 * (b in since) / len(since) for b in bounds)
    then = dict(zip(bounds, accumulate(shares), strict=True))
    counts = {b: turning(first[b], then[b], at, end) for b in bounds}
    return {
        **histogram("chunk_bytes_per_second", ENCODER, counts),
        named("bytes_written_total", ENCODER): rising(100 * chunk_bytes, end),
        named("chunks_total", ENCODER): rising(100, end),
    }


TRANSFERS: Final = (
    Case(
        "MmResumeBlocksQuarantined",
        "g: 8 blocks of p:9090 are quarantined for minutes",
        PREFILL,
        fires=[_pool(PREFILL, free=92, lost=8)],
        quiet=[
            _pool(PREFILL, free=92, held=4, cached=4),
            {named("pool_blocks", PREFILL, state="quarantined"): "8x26 0 8x30"},
        ],
        pending_at=4,
    ),
    Case(
        "MmResumeQuarantineNearLimit",
        "g: 45% of the pool of p:9090 are quarantined",
        PREFILL,
        fires=[_quarantine_limit(45)],
        quiet=[_quarantine_limit(35)],
        pending_at=0,
    ),
    Case(
        "MmResumeTransfersFailing",
        "g: 1.5% of the transfers to p:9090 end without their embedding",
        PREFILL,
        fires=[_endings(3.5, 2)],
        quiet=[_endings(5, 5), _endings(5, 4.5)],
        pending_at=4,
    ),
    Case(
        "MmResumeWritesFailing",
        "g: 2% of the writes of e:9090 fail",
        ENCODER,
        fires=[_writes(2)],
        quiet=[_writes(0.5)],
        pending_at=4,
    ),
    Case(
        "MmResumeCorruptRows",
        "g: rows arrived at p:9090 that were not sent, or are no numbers",
        PREFILL,
        fires=[{named("reasons_total", PREFILL, kind="corrupt"): jump(25)}],
        quiet=[{named("reasons_total", PREFILL, kind="failed"): jump(25)}],
    ),
    Case(
        "MmResumeOddMessages",
        "g: p:9090 ignores messages that make no sense",
        PREFILL,
        fires=[_oddities(**{name: jump(25)}) for name in ("stale", "malformed", "stranger")],
        quiet=[_oddities()],
    ),
    Case(
        "MmResumeBandwidthCollapsed",
        "g: writes run at 1.63GiB/s, half of the day before",
        GRAPH,
        fires=[_bandwidth("5e+09", "2.5e+09", chunk_bytes=400 * 2**10)],
        quiet=[
            _bandwidth("1e+09", "1e+09"),
            _bandwidth("5e+09", "2.5e+09", "5e+09"),
            _bandwidth("5e+09", "2.5e+09", chunk_bytes=200 * 2**10),
        ],
        at=MINUTES_PER_DAY + 40,
        pending_at=MINUTES_PER_DAY + 16,
    ),
)


# --- Workers ---


def _probes(result: str) -> Series:
    return {named("peer_probes_total", PREFILL, peer="encode", result=result): rising(12)}


def _target(up: str, **labels: str) -> Series:
    """A target that has shown our metrics."""
    target = {"job": "mm-resume", "instance": "p:9090", **labels}
    shown = named("reregistrations_total", {**PREFILL, "job": "mm-resume"})
    return {series("up", target): up, shown: "0x5 stale"}


def _roles(encoder: str, prefill: str) -> Series:
    return {
        named("reregistrations_total", ENCODER): encoder,
        named("reregistrations_total", PREFILL): prefill,
        # Another graph that is well.
        named("reregistrations_total", {**PREFILL, "dynamo_namespace": "h"}): steady(0),
    }


TARGET: Final = {"job": "mm-resume", "instance": "p:9090"}

WORKERS: Final = (
    Case(
        "MmResumePeerNotAnswering",
        "g: a worker of role encode with work in flight does not answer probes",
        {**GRAPH, "peer": "encode"},
        fires=[_probes("failed")],
        quiet=[_probes("answered")],
        pending_at=2,
    ),
    Case(
        "MmResumeWorkerDown",
        "p:9090 (mm-resume) cannot be scraped",
        TARGET,
        fires=[_target("1x5 0x30")],
        quiet=[_target("1x40"), _target("1x5 0x30", instance="another:1")],
        pending_at=7,
    ),
    Case(
        "MmResumeRoleMissing",
        "g: no worker of component prefill is left",
        {"dynamo_namespace": "g", "dynamo_component": "prefill"},
        fires=[_roles(steady(0), "0x5 stale")],
        quiet=[_roles(steady(0), steady(0)), _roles("0x5 stale", "0x5 stale")],
        pending_at=9,
    ),
    Case(
        "MmResumeWorkerRestarting",
        "p:9090 (mm-resume) comes and goes",
        TARGET,
        fires=[_target("1x5 0 1x5 0 1x30")],
        quiet=[_target("1x5 0 1x30"), _target("1x5 0 1x5 0 1x30", instance="another:1")],
        at=20,
    ),
    Case(
        "MmResumeWorkerStoodStill",
        "g: p:9090 (prefill) had stood still and was lost from discovery",
        PREFILL,
        fires=[{named("reregistrations_total", PREFILL): jump(25)}],
        quiet=[{named("reregistrations_total", PREFILL): steady(3)}],
    ),
)

CASES: Final = (*OBJECTIVES, *REQUESTS, *TRANSFERS, *WORKERS)
