# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""By how much the counts of all workers rise, as Prometheus would scrape them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from dynamo.sglang_mm_resume.metrics import CATALOGUE, PREFIX
from examples.local_stack import LocalStack
from tests.support.worker_status import get, leftovers, wait_until

ROLES = ("processor", "encode", "prefill")
Counts = dict[str, float]

_IDLE_DEADLINE_S = 10.0
_LABELS = {label for metric in CATALOGUE for label in metric.labels}
# They differ from run to run.
_MEASURED = ("_bucket", "_seconds_sum", "_second_sum")


@contextmanager
def risen(stack: LocalStack) -> Iterator[dict[str, Counts]]:
    """Role to every count that has risen at the end of the block, and by how much; nothing else.

    For graphs with one worker of each role, at rest before and after.
    """
    before = {role: _counts(stack, role) for role in ROLES}
    found: dict[str, Counts] = {}
    yield found
    assert wait_until(lambda: not leftovers(stack), _IDLE_DEADLINE_S)
    for role in ROLES:
        after = _counts(stack, role)
        found[role] = {n: v - before[role][n] for n, v in after.items() if v != before[role][n]}


def _counts(stack: LocalStack, role: str) -> Counts:
    (url,) = stack.system_urls[role]
    found = {}
    for family in text_string_to_metric_families(get(f"{url}/metrics").text):
        if not family.name.startswith(PREFIX) or family.type == "gauge":
            continue
        for sample in family.samples:
            name = sample.name.removeprefix(PREFIX)
            if not name.endswith(_MEASURED):
                labels = [f'{k}="{v}"' for k, v in sample.labels.items() if k in _LABELS]
                found[f"{name}{{{','.join(labels)}}}" if labels else name] = sample.value
    return found
