# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A worker's status in Prometheus' terms, by the catalogue of metrics.py."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString

from dynamo.sglang_mm_resume.metrics import CATALOGUE, PREFIX, Metric, Status

Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


def registry_of(status: Callable[[], Status]) -> CollectorRegistry:
    """Asks for the status at every scrape."""
    registry = CollectorRegistry()
    registry.register(_StatusCollector(status))
    return registry


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Family]:
        status = self._status()
        for metric in CATALOGUE:
            if status["role"] in metric.roles:
                yield _family(metric, metric.figures_in(status))


def _family(metric: Metric, figures: Any) -> Family:
    name, labels = PREFIX + metric.name, tuple(metric.labels)
    series = _series(figures, tuple(metric.labels.values()))
    match metric.kind:
        case "gauge":
            gauge = GaugeMetricFamily(name, metric.text, labels=labels)
            for values, figure in series:  # of what is told one by one, the number
                gauge.add_metric(values, len(figure) if isinstance(figure, dict) else figure)
            return gauge
        case "counter":
            counter = CounterMetricFamily(name, metric.text, labels=labels)
            for values, figure in series:
                counter.add_metric(values, figure)
            return counter
        case "histogram":
            histogram = HistogramMetricFamily(name, metric.text, labels=labels)
            for values, figure in series:
                histogram.add_metric(values, _buckets(figure), figure["sum"])
            return histogram


def _series(figures: Any, labels: Sequence[Sequence[str]]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of all labels with their figure. What has not happened yet counts 0."""
    if not labels:
        yield (), figures
        return
    for value in labels[0] or figures:
        for values, figure in _series(figures.get(value, 0), labels[1:]):
            yield (value, *values), figure


def _buckets(histogram: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Upper bounds, and how many values do not exceed them."""
    bounds = [*histogram["bounds"], INF]
    return list(zip(map(floatToGoString, bounds), accumulate(histogram["counts"]), strict=True))
