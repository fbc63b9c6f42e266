# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What requests leave in the metrics, traces and logs of all workers: exactly what happened."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.sglang_mm_resume.metrics import CATALOGUE, PREFIX
from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, SMALL_POOL, Keeper
from tests.support.metrics import ROLES, risen
from tests.support.pictures import num_tokens, patchwork
from tests.support.spans import Exported
from tests.support.worker_status import get, wait_until

DEPLOYMENT = SMALL_POOL

QUESTION = "What is this?"
MAX_TOKENS = 4
TOKEN_BYTES = 128 * 4  # hidden width, float32
BELOW_DEFAULT = (4, 4)
ABOVE_DEFAULT = (7, 6)
"""42 tokens: a default grant of 32, and another one that is free in a pool at rest."""
NOT_A_PICTURE = "data:image/png;base64,iVBORw0KGgo="
DEADLINE_S = 10.0
# Clocks of processes on one machine differ by nothing, but a stream's end takes a moment.
CLOCK_S = 0.2


# Metrics.


@pytest.mark.parametrize("role", ROLES)
def test_every_metric_of_the_catalogue_is_scraped(stack: LocalStack, role: str) -> None:
    """With its type and its help, once, and with Dynamo's labels."""
    (url,) = stack.system_urls[role]
    families = {
        family.name: family
        for family in text_string_to_metric_families(get(f"{url}/metrics").text)
        if family.name.startswith(PREFIX)
    }
    expected = {PREFIX + m.name: m for m in CATALOGUE if role in m.roles}
    assert set(families) == set(expected)
    for name, metric in expected.items():
        assert (families[name].type, families[name].documentation) == (metric.kind, metric.text)
        assert families[name].samples
        for sample in families[name].samples:
            assert sample.labels["model"] == MODEL_NAME
            assert sample.labels["dynamo_component"] in ("processor", "encoder", "prefill")
            assert sample.labels["worker_id"]


def test_a_picture_above_the_default_grant(stack: LocalStack) -> None:
    image = patchwork(900, *ABOVE_DEFAULT)
    tokens, num_bytes = num_tokens(image), num_tokens(image) * TOKEN_BYTES
    with risen(stack) as moved:
        assert _ask(stack, [data_url(image)]).ok
    assert moved["processor"] == {
        "requests_total": 1,
        "items_total": 1,
        "rounds_total": 2,
        "bytes_total": num_bytes,
        'first_token_seconds_count{media="yes"}': 1,
        'stage_seconds_count{stage="reserve"}': 1,
        'stage_seconds_count{stage="load"}': 1,
        'stage_seconds_count{stage="encode"}': 1,
        'stage_seconds_count{stage="first_token"}': 1,
    }
    # The pool may be full of the pictures of other tests.
    moved["encode"].pop("cache_evictions_total", None)
    assert moved["encode"] == {
        "transfers_total": 1,
        "load_seconds_count": 1,
        "cache_misses_total": 1,
        "encodes_total": 1,
        "encode_seconds_count": 1,
        "encode_batch_items_count": 1,
        "encode_batch_items_sum": 1,
        "chunks_total": 2,
        "bytes_written_total": num_bytes,
        "chunk_write_seconds_count": 2,
        "chunk_bytes_per_second_count": 2,
    }
    assert moved["prefill"] == {
        "transfers_total": 1,
        'buffer_wait_seconds_count{kind="reserve"}': 1,
        "embeddings_assembled_total": 1,
        "embeddings_resumed_total": 1,
        "embedding_tokens_count": 1,
        "embedding_tokens_sum": tokens,
        "embedding_rounds_count": 1,
        "embedding_rounds_sum": 2,
        "bytes_assembled_total": num_bytes,
    }


def test_a_picture_within_the_default_grant_is_not_resumed(stack: LocalStack) -> None:
    with risen(stack) as moved:
        assert _ask(stack, [data_url(patchwork(901, *BELOW_DEFAULT))]).ok
    assert moved["prefill"]["embeddings_assembled_total"] == 1
    assert moved["prefill"]["embedding_rounds_sum"] == 1
    assert "embeddings_resumed_total" not in moved["prefill"]


def test_a_picture_that_comes_again(stack: LocalStack) -> None:
    url = data_url(patchwork(902, *BELOW_DEFAULT))
    assert _ask(stack, [url]).ok
    with risen(stack) as moved:
        assert _ask(stack, [url]).ok
    assert moved["encode"]["cache_hits_total"] == 1
    assert not {"encodes_total", "cache_misses_total", "encode_seconds_count"} & set(
        moved["encode"]
    )
    assert moved["encode"]["load_seconds_count"] == 1


def test_a_bad_picture(stack: LocalStack) -> None:
    with risen(stack) as moved:
        assert _ask(stack, [NOT_A_PICTURE]).status == 400
    assert moved["processor"]['errors_total{kind="bad_request"}'] == 1
    assert moved["encode"]['refusals_total{kind="bad_request"}'] == 1
    assert moved["prefill"]["aborts_total"] == 1
    assert moved["prefill"]['reasons_total{kind="failed"}'] == 1
    assert "load_seconds_count" not in moved["encode"], "it was not loaded"


def test_text_alone(stack: LocalStack) -> None:
    with risen(stack) as moved:
        assert _ask(stack, []).ok
    assert moved["processor"] == {
        "requests_total": 1,
        'first_token_seconds_count{media="no"}': 1,
        'stage_seconds_count{stage="first_token"}': 1,
    }
    assert moved["encode"] == moved["prefill"] == {}


def test_sglang_s_own_metrics_are_whole(stack: LocalStack) -> None:
    """--enable-metrics: those of its scheduler, and those of our process, which loads a library
    that must not be loaded before the engine has started.
    """
    assert _ask(stack, []).ok
    (url,) = stack.system_urls["prefill"]
    families = {f.name for f in text_string_to_metric_families(get(f"{url}/metrics").text)}
    assert {"sglang:num_queue_reqs", "sglang:prompt_tokens"} <= families


# Traces.


def test_one_request_is_one_trace(stack: LocalStack, keeper: Keeper) -> None:
    pytest.importorskip("opentelemetry.proto", reason="opentelemetry-proto is not installed")
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    url = data_url(patchwork(910, *ABOVE_DEFAULT))
    assert _ask(stack, [url], {"traceparent": f"00-{trace_id}-{caller}-01"}).ok
    parents = {
        "request": None,  # a span of Dynamo's
        "item": "request",
        "reserve": "item",
        "wait_for_blocks": "item",
        "encode_item": "item",
        "load": "encode_item",
        "encode": "encode_item",
        "chunk": "encode_item",
        "resume": "item",
        "assemble": "item",
        "first_token": "request",
        "generate": "request",
        "prefill": "generate",
    }
    found: list[Exported] = []

    def complete() -> bool:
        found[:] = _collected(keeper, trace_id)
        names = {span.name.removeprefix("mm_resume.") for span in found}
        return set(parents) <= names and _root(found) is not None

    assert wait_until(complete, DEADLINE_S), sorted(span.name for span in found)
    ours = [span for span in found if span.name.startswith("mm_resume.")]
    counts = Counter(span.name.removeprefix("mm_resume.") for span in ours)
    assert counts == {name: 2 if name == "chunk" else 1 for name in parents}
    by_id = {span.span_id: span for span in found}
    for span in ours:
        name = span.name.removeprefix("mm_resume.")
        parent = by_id[span.parent_id]
        expected = parents[name]
        if expected is None:
            assert not parent.name.startswith("mm_resume."), "Dynamo's, around our handler"
        else:
            assert parent.name == f"mm_resume.{expected}", name
        assert parent.start - CLOCK_S <= span.start <= span.end
        assert span.end <= by_id[_request(ours).span_id].end + CLOCK_S
        assert not span.failed
    root = _root(found)
    assert root is not None and root.parent_id == caller, "the client's span is above all"
    for span in found:  # from each of ours the way leads up to the client's
        seen = set()
        while span.parent_id != caller:
            assert span.span_id not in seen
            seen.add(span.span_id)
            span = by_id[span.parent_id]
    (assembled,) = (span for span in ours if span.name == "mm_resume.assemble")
    assert (assembled.attributes["tokens"], assembled.attributes["rounds"]) == (42, 2)
    chunks = [span.attributes["tokens"] for span in ours if span.name == "mm_resume.chunk"]
    assert sorted(chunks) == [10, 32]


def test_what_fails_is_marked_in_the_trace(stack: LocalStack, keeper: Keeper) -> None:
    pytest.importorskip("opentelemetry.proto", reason="opentelemetry-proto is not installed")
    trace_id = secrets.token_hex(16)
    header = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    assert _ask(stack, [NOT_A_PICTURE], header).status == 400
    found: list[Exported] = []

    def complete() -> bool:
        found[:] = _collected(keeper, trace_id)
        return "mm_resume.request" in {span.name for span in found}

    assert wait_until(complete, DEADLINE_S)
    failed = {span.name for span in found if span.failed and span.name.startswith("mm_resume.")}
    assert failed >= {"mm_resume.request", "mm_resume.item", "mm_resume.load"}


# Logs.


def test_lines_of_one_request_carry_its_id_on_every_worker(stack: LocalStack) -> None:
    before = {role: len(_log(stack, role)) for role in ROLES}
    assert _ask(stack, [NOT_A_PICTURE]).status == 400
    said = {
        "processor": r"request (\S+): image 1: ",
        "encode": r"refused \(bad_request\): ",
        "prefill": r"transfer \S+ ended: ",
    }
    ids: dict[str, set[Any]] = {}

    def complete() -> bool:
        for role, text in said.items():
            lines = _log(stack, role)[before[role] :]
            ids[role] = set(re.findall(rf"\[([\w.:-]+)\] {text}", lines))
        return all(ids.values())

    assert wait_until(complete, DEADLINE_S), ids
    (named,) = ids["processor"]
    assert named[0] == named[1], "the id at the beginning of the line is the request's"
    assert ids["encode"] == ids["prefill"] == {named[0]}


def test_lines_that_are_nobody_s_carry_none(stack: LocalStack) -> None:
    for role in ROLES:
        lines = _log(stack, role)
        assert re.search(r"(?<!\] )\w+ worker \d+ is ready|: processor \d+ serves", lines), role


# Helpers.


def _ask(stack: LocalStack, urls: list[str], headers: dict[str, str] | None = None) -> Answer:
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, headers=headers)


def _collected(keeper: Keeper, trace_id: str) -> list[Exported]:
    assert keeper.spans is not None
    return keeper.spans.spans(trace_id)


def _request(spans: list[Exported]) -> Exported:
    (request,) = (span for span in spans if span.name == "mm_resume.request")
    return request


def _root(spans: list[Exported]) -> Exported | None:
    """The one that is part of none of the others."""
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id not in ids]
    return roots[0] if len(roots) == 1 else None


def _log(stack: LocalStack, role: str) -> str:
    (path,) = (p.log_path for p in stack.processes if p.name.partition("-")[0] == role)
    return Path(path).read_text(errors="replace")
