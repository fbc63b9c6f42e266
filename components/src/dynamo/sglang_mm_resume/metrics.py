# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A worker's status as Prometheus metrics on its system port.

One source of truth: every scrape reads the same dict that `/engine/mm_resume/status` returns.
Names are `dynamo_component_mm_resume_*`; labels are bounded (a state or a reason, never an id).
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from dynamo.common.utils.prometheus import register_engine_metrics_callback
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX: Final = "dynamo_component_mm_resume_"
Status = dict[str, Any]


class StatusCollector(Collector):
    """Turns one status dict into metric families at scrape time."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        if "pool" in status:
            yield from _pool(status["pool"])
        for name, text in _GAUGES.items():
            if name in status:
                value = status[name]
                count = len(value) if isinstance(value, dict) else value
                yield GaugeMetricFamily(PREFIX + name, text, value=count)
        for name, value in status.get("totals", {}).items():
            if isinstance(value, int | float):
                yield CounterMetricFamily(PREFIX + name, f"Since start: {name}.", value=value)
        if "limits" in status:
            yield _limits(status["limits"])
        for name in ("refusals", "oddities"):
            if name in status:
                yield _by_reason(name, status[name])
        for name in ("reasons", "errors"):
            if name in status.get("totals", {}):
                yield _by_reason(name, status["totals"][name])


_GAUGES: Final = {
    "transfers": "Transfers that are not closed.",
    "requests": "Requests under way.",
    "default_blocks": "Blocks of a default grant.",
    "waiting": "Transfers queued for blocks.",
    "assembled_tokens": "Tokens of embeddings assembled or being assembled.",
    "embeddings_offered": "Embeddings that requests have handed to the engine.",
    "engine_requests": "Requests that the engine has not ended.",
    "tasks": "Background tasks.",
}


def publish_metrics(endpoint: Any, status: Callable[[], Status], model: str, prefix: str) -> None:
    """Add the worker's metrics to its `/metrics`. `prefix` is `namespace.component`."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    namespace, component = prefix.rsplit(".", 1)
    register_engine_metrics_callback(
        endpoint,
        registry,
        metric_prefix_filters=[PREFIX],
        namespace_name=namespace,
        component_name=component,
        endpoint_name="generate",
        model_name=model,
    )


def _pool(pool: dict[str, int]) -> Iterator[Metric]:
    blocks = GaugeMetricFamily(
        PREFIX + "pool_blocks", "Blocks of the buffer pool, by state.", labels=["state"]
    )
    for state in ("free", "held", "cached", "quarantined"):
        blocks.add_metric([state], pool.get(state, 0))
    yield blocks
    yield GaugeMetricFamily(PREFIX + "pool_size_blocks", "Blocks in all.", value=pool["total"])
    yield GaugeMetricFamily(
        PREFIX + "pool_peak_used_blocks", "Most blocks ever in use.", value=pool["peak_used"]
    )


def _limits(limits: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(
        PREFIX + "limit", "Bounds beyond which clients get 503, as configured.", labels=["name"]
    )
    for name, value in limits.items():
        family.add_metric([name], value)
    return family


def _by_reason(name: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, f"Since start: {name}, by kind.", labels=["kind"])
    for kind, count in counts.items():
        family.add_metric([kind], count)
    return family
