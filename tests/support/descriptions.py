# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Workers of a graph as they describe themselves, with what a test wants to be different."""

from __future__ import annotations

from typing import Any

from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION, Layout
from dynamo.sglang_mm_resume.doctor.graph import Worker
from dynamo.sglang_mm_resume.workers.status import Description, Lengths, Process

LAYOUT = Layout(model="m", width=3584, dtype="bfloat16", block_size=128)


def process(**changes: Any) -> Process:
    """Of a machine without RDMA."""
    known: dict[str, Any] = {
        "host": "node-1",
        "boot_id": "boot-1",
        "pid": 1,
        "pid_namespace": "pid:[1]",
        "ipc_namespace": "ipc:[1]",
        "ucx": {},
        "rdma_devices": [],
        "versions": {"sglang": "0.5.21"},
        "tcp_sent": 0,
        "rdma_sent": None,
    }
    return Process(**{**known, **changes})


def worker(role: str, instance_id: int = 1, **changes: Any) -> Worker:
    """One that has answered. `changes`: fields of its layout, its process or its description."""
    fields = set(Layout.model_fields) - {"protocol_version"}
    layout = {k: changes.pop(k) for k in list(changes) if k in fields}
    facts = {k: changes.pop(k) for k in list(changes) if k in Process.model_fields}
    has_pool = role in ("encode", "prefill")
    known: dict[str, Any] = {
        "role": role,
        "namespace": "test",
        "protocol_version": PROTOCOL_VERSION,
        "layout": LAYOUT.model_dump() | layout if has_pool else None,
        "memory": "DRAM" if has_pool else None,
        "process": process(**facts),
    }
    return Worker(role, instance_id, Description(**{**known, **changes}))


def silent(role: str, instance_id: int = 9) -> Worker:
    """One that has not."""
    return Worker(role, instance_id, error="no answer in 5 s", address="10.0.0.7:4321")


def prefill(
    count: int = 64,
    p75: int | None = 1000,
    longest: int | None = 4000,
    default_blocks: int = 8,
    total_blocks: int = 512,
    peak_transfers: int = 4,
) -> Description:
    """A prefill worker that has received embeddings; with default settings."""
    found = worker(
        "prefill",
        lengths=Lengths(count=count, p75=p75, max=longest),
        default_blocks=default_blocks,
        pool={"total": total_blocks},
        peak_transfers=peak_transfers,
    )
    assert found.description is not None
    return found.description
