# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`metrics.py`: what becomes of a status. That real workers have all of it is tested in
integration/test_metrics_and_traces.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.sglang_mm_resume import metrics
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.cache import CacheTotals
from dynamo.sglang_mm_resume.core.errors import Reason
from dynamo.sglang_mm_resume.core.histogram import FEW, SECONDS, Histogram
from dynamo.sglang_mm_resume.core.receiver import Oddity
from dynamo.sglang_mm_resume.exposition import registry_of
from dynamo.sglang_mm_resume.metrics import ALL, CATALOGUE, PREFIX, Metric
from dynamo.sglang_mm_resume.transport.assembler import Totals
from dynamo.sglang_mm_resume.transport.writer import WriterTotals
from dynamo.sglang_mm_resume.workers.encodings import EncodeTotals
from dynamo.sglang_mm_resume.workers.presence import PresenceTotals
from tests.workers.test_processor_flow import a_processor, ask

POOL = asdict(BlockPool(num_blocks=8, block_size=4, default_blocks=2).stats())
PRESENCE = asdict(PresenceTotals())


def processor() -> dict[str, Any]:
    status = a_processor().status()
    return status | {"totals": status["totals"] | PRESENCE}


def encode() -> dict[str, Any]:
    """As of `EncodeHandler.status`, which needs a vision tower."""
    return {
        "role": "encode",
        "pool": {**POOL, "cached": 0},
        "transfers": {},
        "encodes_waiting": 0,
        "writes_in_flight": 0,
        "tasks": 0,
        "limits": Settings().limits,
        "refusals": {},
        "totals": {
            **asdict(WriterTotals()),
            **asdict(CacheTotals()),
            **asdict(EncodeTotals()),
            **PRESENCE,
            "load_seconds": asdict(Histogram(SECONDS)),
            "encode_seconds": asdict(Histogram(SECONDS)),
            "encode_batch_items": asdict(Histogram(FEW)),
        },
    }


def prefill() -> dict[str, Any]:
    """As of `prefill_status`, which needs an engine."""
    return {
        "role": "prefill",
        "pool": POOL,
        "transfers": {},
        "default_blocks": 2,
        "waiting": 0,
        "peak_transfers": 0,
        "assembled_tokens": 0,
        "embeddings_offered": 0,
        "engine_requests": 0,
        "tasks": 0,
        "limits": Settings().limits,
        "refusals": {},
        "oddities": {},
        "totals": {
            **asdict(Totals()),
            **PRESENCE,
            "peer_probes": {"encode": {"answered": 0, "failed": 0}},
        },
    }


def decode() -> dict[str, Any]:
    return {
        "role": "decode",
        "embeddings_offered": 0,
        "engine_requests": 0,
        "refusals": {},
        "totals": PRESENCE,
    }


STATUSES = {"processor": processor, "encode": encode, "prefill": prefill, "decode": decode}


def scraped(status: dict[str, Any]) -> dict[str, float]:
    """Every sample of a scrape, as it is written: name and labels."""
    lines = generate_latest(registry_of(lambda: status)).decode().splitlines()
    found = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    assert len(dict(found)) == len(found), "a series twice"
    return {name.removeprefix(PREFIX): float(value) for name, value in found}


@pytest.mark.parametrize("role", ALL)
def test_a_worker_that_has_done_nothing_has_all_of_its_metrics_with_0(role: str) -> None:
    status = STATUSES[role]()
    found = scraped(status)
    for metric in CATALOGUE:
        of_it = [
            name for name in found if re.match(rf"{_name(metric)}(_bucket|_sum|_count|{{|$)", name)
        ]
        assert bool(of_it) == (role in metric.roles), metric.name
        if metric.kind != "gauge":
            assert not any(found[name] for name in of_it)
        labels = metric.labels
        if labels and role in metric.roles:
            (values, *_) = labels.values()
            assert {re.split('"', name)[1] for name in of_it} >= set(values)


def _name(metric: Metric) -> str:
    return metric.full_name.removeprefix(PREFIX)


@pytest.mark.parametrize("role", ALL)
def test_no_count_of_a_status_is_left_out(role: str) -> None:
    """Totals whose name is in no metric are seen by nobody."""
    named = {m.name for m in CATALOGUE if role in m.roles}
    assert set(STATUSES[role]()["totals"]) <= named


@pytest.mark.parametrize(
    "metric", [m for m in CATALOGUE if m.kind != "gauge"], ids=lambda m: m.name
)
def test_all_labels_of_a_status_are_known(metric: Metric) -> None:
    """What the catalogue does not list is not scraped."""
    for role in metric.roles:
        figures = metric.figures_in(STATUSES[role]())
        for values in metric.labels.values():
            assert not values or set(figures) <= set(values), f"{metric.name} of {role}"
            figures = next(iter(figures.values()), {})


def test_names_are_used_once() -> None:
    """Prometheus tells `x_total` from `x`; OpenMetrics and OTLP, for which both are `x`, do not."""
    assert max(Counter(metric.name for metric in CATALOGUE).values()) == 1


def test_labels_are_bounded() -> None:
    for metric in CATALOGUE:
        for name, values in metric.labels.items():
            assert values or name in ("name", "role", "peer"), metric.name
            assert len(values) <= 16


@pytest.mark.parametrize(
    ("name", "role", "kinds"),
    [
        ("errors", "processor", [*Reason, "downstream"]),
        ("refusals", "encode", [*Reason]),
        ("refusals", "decode", [*Reason]),
        ("reasons", "prefill", [*Reason]),
        ("oddities", "prefill", [*Oddity]),
    ],
)
def test_every_kind_has_a_series(name: str, role: str, kinds: list[str]) -> None:
    status = STATUSES[role]()
    place = status["totals"] if name in status["totals"] else status
    place[name] = {kind: number for number, kind in enumerate(kinds, 1)}
    found = scraped(status)
    for number, kind in enumerate(kinds, 1):
        assert found[f'{name}_total{{kind="{kind}"}}'] == number


def test_the_pool_by_state() -> None:
    pool = {"free": 1, "held": 2, "cached": 3, "quarantined": 4, "total": 10, "peak_used": 9}
    found = scraped(encode() | {"pool": pool})
    states = {name: value for name, value in found.items() if name.startswith("pool_")}
    assert states == {
        'pool_blocks{state="free"}': 1,
        'pool_blocks{state="held"}': 2,
        'pool_blocks{state="cached"}': 3,
        'pool_blocks{state="quarantined"}': 4,
        "pool_size_blocks": 10,
        "pool_peak_used_blocks": 9,
    }


def test_what_is_told_one_by_one_is_counted() -> None:
    assert scraped(encode() | {"transfers": {"a": "sending", "b": "done"}})["transfers_live"] == 2


def test_probes_by_role_and_result() -> None:
    status = processor()
    status["totals"]["peer_probes"]["encode"]["failed"] = 2
    found = scraped(status)
    assert found['peer_probes_total{peer="encode",result="failed"}'] == 2
    assert found['peer_probes_total{peer="prefill",result="answered"}'] == 0
    assert not any('peer="decode"' in name for name in found), "it has none"


def test_a_histogram_accumulates() -> None:
    totals = Totals()
    for seconds in (0.0002, 0.002, 0.02, 120.0):
        totals.buffer_wait_seconds["resume"].observe(seconds)
    status = prefill()
    status["totals"] |= asdict(totals)
    found = scraped(status)
    below = {
        bound: found[f'buffer_wait_seconds_bucket{{kind="resume",le="{bound}"}}']
        for bound in ("0.0005", "0.0025", "0.01", "0.025", "60.0", "+Inf")
    }
    assert list(below.values()) == [1, 2, 2, 3, 3, 4]
    assert found['buffer_wait_seconds_count{kind="resume"}'] == 4
    assert found['buffer_wait_seconds_sum{kind="resume"}'] == pytest.approx(120.0222)
    assert found['buffer_wait_seconds_count{kind="reserve"}'] == 0


async def test_the_processor_times_what_it_does() -> None:
    side = a_processor()
    await ask(side)
    media = {"multi_modal_data": {"image_url": [{"Url": "data:image/png;base64,AA"}]}}
    await ask(side, token_ids=[1, 9, 2], **media)
    found = scraped({**side.status(), "totals": {**side.status()["totals"], **PRESENCE}})
    assert found['first_token_seconds_count{media="no"}'] == 1
    assert found['first_token_seconds_count{media="yes"}'] == 1
    counts = {stage: found[f'stage_seconds_count{{stage="{stage}"}}'] for stage in _stages()}
    assert counts == {"reserve": 1, "load": 1, "encode": 1, "first_token": 2}


def _stages() -> tuple[str, ...]:
    (metric,) = (metric for metric in CATALOGUE if metric.name == "stage_seconds")
    return tuple(metric.labels["stage"])


def test_dynamo_adds_who_it_is() -> None:
    """By way of its own function, on both of its surfaces."""
    endpoint = _Endpoint()
    metrics.publish_metrics(endpoint, prefill, "a-model", "space.prefill")
    families = list(text_string_to_metric_families(endpoint.metrics.text()))
    (assembled,) = (f for f in families if f.name == f"{PREFIX}embeddings_assembled")
    assert assembled.samples[0].labels == {
        "dynamo_namespace": "space",
        "dynamo_component": "prefill",
        "dynamo_endpoint": "generate",
        "worker_id": "1f",
        "model": "a-model",
        "model_name": "a-model",
    }
    typed = {name: kind for name, _, kind, *_ in endpoint.metrics.typed()}
    assert typed[f"{PREFIX}buffer_wait_seconds"] == "histogram"
    assert len(typed) == sum("prefill" in metric.roles for metric in CATALOGUE)


class _Endpoint:
    """What Dynamo's function uses of an endpoint."""

    def __init__(self) -> None:
        self.metrics = _Callbacks()

    def connection_id(self) -> int:
        return 31


class _Callbacks:
    text: Callable[[], str]
    typed: Callable[[], list[Any]]

    def register_prometheus_expfmt_callback(self, callback: Callable[[], str]) -> None:
        self.text = callback

    def register_prometheus_typed_callback(self, callback: Callable[[], list[Any]]) -> None:
        self.typed = callback
