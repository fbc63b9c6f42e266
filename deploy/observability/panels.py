# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the dashboard shows: rows of panels, each with its PromQL.

make_dashboard.py turns them into Grafana's JSON, render.py draws them without Grafana. Expressions
have Grafana's variables: `$namespace` and `$model`, regular expressions that choose a graph, and
`$__rate_interval`, a window that always holds a few scrapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "dynamo_component_mm_resume_"

#: The objectives: a panel is red from there on.
MAX_RESUME_RATE: Final = 0.25
MAX_WAIT_S: Final = 0.01
MAX_POOL_USE: Final = 0.8

GRAPH: Final = 'dynamo_namespace=~"$namespace",model=~"$model"'


class Unit(StrEnum):
    """Grafana's names."""

    PLAIN = "short"
    SHARE = "percentunit"
    SECONDS = "s"
    BYTES_PER_SECOND = "Bps"
    PER_SECOND = "cps"


@dataclass(frozen=True)
class Query:
    """One expression; `legend` names its series by their labels: `{{label}}`."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """`limit`: what is too much, drawn as a line. `stat`: the latest value instead of a graph."""

    title: str
    text: str
    queries: Sequence[Query]
    unit: Unit = Unit.PLAIN
    limit: float | None = None
    stacked: bool = False
    stat: bool = False


@dataclass(frozen=True)
class Row:
    """Panels next to each other."""

    title: str
    panels: Sequence[Panel]


def series(name: str, labels: str = "") -> str:
    """A selector of one of our metrics, within the chosen graph."""
    return f"{PREFIX}{name}{{{GRAPH}{',' if labels else ''}{labels}}}"


def rate(name: str, by: str, labels: str = "") -> str:
    """Increase per second, summed by some labels."""
    return f"sum by ({by}) (rate({series(name, labels)}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = "", labels: str = "") -> str:
    """A quantile of a histogram over the last moments."""
    labels_kept = f"le,{by}" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', labels_kept, labels)})"


def quantiles(name: str, by: str = "", labels: str = "") -> list[Query]:
    """The median, and what one in twenty exceeds."""
    suffix = f" {{{{{by}}}}}" if by else ""
    return [
        Query(quantile(share, name, by, labels), f"{title}{suffix}")
        for share, title in ((0.5, "median"), (0.95, "p95"))
    ]


def share(part: str, whole: str) -> str:
    """How much of `whole` is `part`; two expressions with equal labels."""
    return f"{part} / {whole}"


POOL_USE: Final = share(
    f"""sum without (state) ({series("pool_blocks", 'state=~"held|quarantined"')})""",
    series("pool_size_blocks"),
)
RESUME_RATE: Final = share(
    rate("embeddings_resumed_total", "model"), rate("embeddings_assembled_total", "model")
)
WAIT_P99: Final = quantile(0.99, "buffer_wait_seconds")
ROWS: Final[Sequence[Row]] = (
    Row(
        "Objectives",
        (
            Panel(
                "Resume rate",
                "Embeddings that needed a second grant. Objective: below 25 %.",
                [Query(RESUME_RATE, "{{model}}")],
                Unit.SHARE,
                limit=MAX_RESUME_RATE,
                stat=True,
            ),
            Panel(
                "Wait for blocks, p99",
                "Time that a transfer queues for blocks of a prefill worker. Objective: 10 ms.",
                [Query(WAIT_P99, "p99")],
                Unit.SECONDS,
                limit=MAX_WAIT_S,
                stat=True,
            ),
            Panel(
                "Pool use",
                "Blocks that are held or quarantined, in the fullest pool. Objective: below 80 %.",
                [Query(f"max by (dynamo_component) ({POOL_USE})", "{{dynamo_component}}")],
                Unit.SHARE,
                limit=MAX_POOL_USE,
                stat=True,
            ),
            Panel(
                "Default grant",
                "Blocks that an embedding gets before its length is known.",
                [Query(f"max by (model) ({series('default_blocks')})", "blocks")],
                stat=True,
            ),
            Panel(
                "Workers",
                "Workers that are scraped, by component.",
                [
                    Query(
                        f"count by (dynamo_component) ({series('reregistrations_total')})",
                        "{{dynamo_component}}",
                    )
                ],
                stat=True,
            ),
            Panel(
                "Alerts",
                "Alerts of ours that fire, of all graphs.",
                [
                    Query(
                        'count(ALERTS{alertname=~"MmResume.*",alertstate="firing"}) or vector(0)',
                        "firing",
                    )
                ],
                limit=1,
                stat=True,
            ),
        ),
    ),
    Row(
        "Requests",
        (
            Panel(
                "Requests",
                "Taken by the processors, and what became of those without an answer.",
                [
                    Query(rate("requests_total", "model"), "taken"),
                    Query(rate("stopped_total", "model"), "client hung up"),
                    Query(
                        rate("encode_retries_total", "model"), "item tried on another encode worker"
                    ),
                    Query(
                        rate("prefill_retries_total", "model"), "tried on another prefill worker"
                    ),
                    Query(rate("answers_continued_total", "model"), "answer went on at another"),
                    Query(rate("encode_fallbacks_total", "model"), "encoded by the engine"),
                    Query(rate("items_local_total", "model"), "item too small to be sent"),
                ],
                Unit.PER_SECOND,
            ),
            Panel(
                "Errors by kind",
                "overloaded, draining and timeout are 503, later; "
                "bad_request and too_long are the client's.",
                [Query(f"{rate('errors_total', 'kind')} > 0", "{{kind}}")],
                Unit.PER_SECOND,
            ),
            Panel(
                "First token",
                "From the request to its first token, with pictures (yes) and without (no).",
                quantiles("first_token_seconds", by="media"),
                Unit.SECONDS,
            ),
            Panel(
                "Stages",
                "95th percentile of what a request waits for: blocks (reserve), its picture "
                "(load), tower and writes (encode), the engine (first_token).",
                [Query(quantile(0.95, "stage_seconds", by="stage"), "{{stage}}")],
                Unit.SECONDS,
            ),
        ),
    ),
    Row(
        "KV-aware routing",
        (
            Panel(
                "Choices of the KV router",
                "With --router-mode kv: requests for which it has chosen the prefill worker, and "
                "those whose beginning is cached there.",
                [
                    Query(rate("routed_total", "model"), "chosen"),
                    Query(rate("routed_hits_total", "model"), "beginning cached"),
                    Query(rate("routing_failures_total", "model"), "nobody chosen"),
                ],
                Unit.PER_SECOND,
            ),
            Panel(
                "Prompts cached where they went",
                "Tokens of routed prompts that their prefill worker had already.",
                [
                    Query(
                        share(
                            rate("routed_overlap_tokens_total", "model"),
                            rate("routed_tokens_total", "model"),
                        ),
                        "{{model}}",
                    )
                ],
                Unit.SHARE,
            ),
        ),
    ),
    Row(
        "Hand-over",
        (
            Panel(
                "Resume rate over time",
                "Embeddings that needed a second grant.",
                [Query(RESUME_RATE, "{{model}}")],
                Unit.SHARE,
                limit=MAX_RESUME_RATE,
            ),
            Panel(
                "Wait for blocks",
                "Time that a transfer queues for its first blocks (reserve) or for more (resume).",
                [
                    Query(quantile(0.5, "buffer_wait_seconds", by="kind"), "median {{kind}}"),
                    Query(quantile(0.99, "buffer_wait_seconds", by="kind"), "p99 {{kind}}"),
                ],
                Unit.SECONDS,
                limit=MAX_WAIT_S,
            ),
            Panel(
                "Embedding length",
                "Tokens. A default grant should hold three of four.",
                [
                    Query(quantile(0.5, "embedding_tokens"), "median"),
                    Query(quantile(0.75, "embedding_tokens"), "p75"),
                    Query(quantile(0.95, "embedding_tokens"), "p95"),
                ],
            ),
            Panel(
                "Rounds",
                "Grants that an embedding took, on average.",
                [
                    Query(
                        share(
                            rate("embedding_rounds_sum", "model"),
                            rate("embedding_rounds_count", "model"),
                        ),
                        "rounds",
                    ),
                ],
            ),
        ),
    ),
    Row(
        "Pools",
        (
            Panel(
                "Blocks by state",
                "Prefill workers. Quarantined: a writer that does not answer may still write them.",
                [
                    Query(
                        "sum by (state) "
                        f"""({series("pool_blocks", 'dynamo_component="prefill"')})""",
                        "{{state}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Blocks by state, encode workers",
                "cached: they hold an embedding, and are free for whoever needs them.",
                [
                    Query(
                        "sum by (state) "
                        f"""({series("pool_blocks", 'dynamo_component="encoder"')})""",
                        "{{state}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Pool use by worker",
                "Blocks that are held or quarantined.",
                [
                    Query(
                        f"max by (dynamo_component, instance) ({POOL_USE})",
                        "{{dynamo_component}} {{instance}}",
                    )
                ],
                Unit.SHARE,
                limit=MAX_POOL_USE,
            ),
            Panel(
                "Waiting",
                "Transfers that queue for blocks, and pictures that wait for a vision tower.",
                [
                    Query(f"sum by (model) ({series('waiting')})", "transfers for blocks"),
                    Query(f"sum by (model) ({series('encodes_waiting')})", "pictures for a tower"),
                ],
            ),
        ),
    ),
    Row(
        "Writes",
        (
            Panel(
                "Bytes written",
                "By each encode worker, into blocks of prefill workers.",
                [Query(rate("bytes_written_total", "instance"), "{{instance}}")],
                Unit.BYTES_PER_SECOND,
            ),
            Panel(
                "Write of a chunk",
                "From the post to NIXL until it is done.",
                quantiles("chunk_write_seconds"),
                Unit.SECONDS,
            ),
            Panel(
                "Bandwidth of a write",
                "Bytes of a chunk over its time; small ones are all latency. A lasting fall by "
                "half may be a fall-back to TCP.",
                [
                    Query(quantile(0.05, "chunk_bytes_per_second"), "p5"),
                    Query(quantile(0.5, "chunk_bytes_per_second"), "median"),
                ],
                Unit.BYTES_PER_SECOND,
            ),
            Panel(
                "Transfers in flight",
                "By worker, and the writes that are posted at this moment.",
                [
                    Query(
                        f"sum by (dynamo_component) ({series('transfers_live')})",
                        "transfers {{dynamo_component}}",
                    ),
                    Query(f"sum by (model) ({series('writes_in_flight')})", "writes"),
                ],
            ),
        ),
    ),
    Row(
        "Encode workers",
        (
            Panel(
                "Load",
                "Fetch, decode and prepare a picture.",
                quantiles("load_seconds"),
                Unit.SECONDS,
            ),
            Panel("Vision tower", "One batch.", quantiles("encode_seconds"), Unit.SECONDS),
            Panel(
                "Batches",
                "Pictures that went through the tower together, on average.",
                [
                    Query(
                        share(
                            rate("encode_batch_items_sum", "instance"),
                            rate("encode_batch_items_count", "instance"),
                        ),
                        "{{instance}}",
                    )
                ],
            ),
            Panel(
                "Embedding cache",
                "Pictures whose embedding was there already (hits), and embeddings that made room.",
                [
                    Query(rate("cache_hits_total", "model"), "hits"),
                    Query(rate("cache_misses_total", "model"), "misses"),
                    Query(rate("cache_evictions_total", "model"), "evictions"),
                ],
                Unit.PER_SECOND,
            ),
        ),
    ),
    Row(
        "Failures",
        (
            Panel(
                "Refusals by kind",
                "Of encode, prefill and decode workers.",
                [
                    Query(
                        f"{rate('refusals_total', 'dynamo_component, kind')} > 0",
                        "{{dynamo_component}} {{kind}}",
                    )
                ],
                Unit.PER_SECOND,
            ),
            Panel(
                "Transfers that ended early",
                "By reason; those that a processor gave up (abort) are among them.",
                [
                    Query(f"{rate('reasons_total', 'kind')} > 0", "{{kind}}"),
                    Query(rate("aborts_total", "model"), "aborts"),
                    Query(rate("write_failures_total", "model"), "failed writes"),
                ],
                Unit.PER_SECOND,
            ),
            Panel(
                "Probes that failed",
                "Of workers with work in flight, by role; and workers that discovery had lost.",
                [
                    Query(
                        rate("peer_probes_total", "peer", 'result="failed"'), "{{peer}} is silent"
                    ),
                    Query(
                        rate("reregistrations_total", "dynamo_component"),
                        "{{dynamo_component}} stood still",
                    ),
                ],
                Unit.PER_SECOND,
            ),
            Panel(
                "Odd messages",
                "late is usual after a transfer was given up; all else is a bug, or a stranger.",
                [
                    Query(rate("oddities_total", "kind"), "{{kind}}"),
                    Query(rate("malformed_notices_total", "model"), "malformed"),
                    Query(rate("stranger_notices_total", "model"), "stranger"),
                ],
                Unit.PER_SECOND,
            ),
        ),
    ),
    Row(
        "Load",
        (
            Panel(
                "Under way",
                "Requests in the processors and in the engines.",
                [
                    Query(f"sum by (model) ({series('requests_live')})", "processors"),
                    Query(
                        f"sum by (dynamo_component) ({series('engine_requests')})",
                        "engine {{dynamo_component}}",
                    ),
                ],
            ),
            Panel(
                "Waiting for a worker",
                "Work in the processors for which no worker of a role has room.",
                [Query(f"sum by (role) ({series('items_waiting')})", "{{role}}")],
            ),
            Panel(
                "Assembled embeddings",
                "Tokens on the prefill workers, on their way to the engine.",
                [Query(f"sum by (instance) ({series('assembled_tokens')})", "{{instance}}")],
            ),
            Panel(
                "Tasks",
                "Background tasks. A line that only rises is a leak.",
                [
                    Query(
                        f"sum by (dynamo_component, instance) ({series('tasks')})",
                        "{{dynamo_component}} {{instance}}",
                    )
                ],
            ),
        ),
    ),
)

PANELS: Final[Sequence[Panel]] = tuple(panel for row in ROWS for panel in row.panels)
