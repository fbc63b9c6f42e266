# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which default grant and which pool fit the embeddings that prefill workers have received.

What they remember of them is in their status: the lengths of the last 128 (`lengths`), and how many
transfers have had or wanted blocks at the same time (`peak_transfers`).
"""

from collections.abc import Sequence
from typing import Final

from dynamo.sglang_mm_resume.config import DEFAULT_BLOCKS, POOL_BUFFERS
from dynamo.sglang_mm_resume.core.layout import Layout
from dynamo.sglang_mm_resume.core.lengths import ENOUGH
from dynamo.sglang_mm_resume.doctor.report import Result, ok, skip, warn
from dynamo.sglang_mm_resume.workers.status import Description

#: Default grants per transfer that is under way at the same time: one that is filled, one on its
#: way home.
GRANTS_PER_TRANSFER: Final = 2


def advice(prefill: Sequence[Description]) -> list[Result]:
    """For all prefill workers of a graph alike: the largest need counts."""
    known = [worker for worker in prefill if worker.known_layout]
    return [default_grant(known), pool_size(known)]


def default_grant(prefill: Sequence[Description]) -> Result:
    """So large that three of four embeddings fit: a resume rate below 25 %."""
    name = "default grant"
    seen = max((worker.lengths.count for worker in prefill if worker.lengths), default=0)
    wanted = wanted_blocks(prefill)
    if wanted is None:
        text = f"a prefill worker must have received {ENOUGH} embeddings; the most are {seen}"
        return skip(name, text, seen=seen)
    configured = min(worker.default_blocks or 0 for worker in prefill)
    p75 = max(_p75s(prefill))
    longest = max(worker.lengths.max or 0 for worker in prefill if worker.lengths)
    figures = {
        "seen": seen,
        "p75_tokens": p75,
        "max_tokens": longest,
        "recommended_blocks": wanted,
        "configured_blocks": configured,
    }
    text = (
        f"three of four embeddings have at most {p75:,} tokens (longest {longest:,}, {seen} seen): "
        f"{wanted} blocks; a default grant has {configured}"
    )
    if configured >= wanted:
        return ok(name, text, **figures)
    action = f"{DEFAULT_BLOCKS.flag} {wanted} ({DEFAULT_BLOCKS.env}) on the prefill workers"
    return warn(name, text, action, **figures)


def pool_size(prefill: Sequence[Description]) -> Result:
    """Two default grants for each of the transfers that were under way at once."""
    name = "pool size"
    peak = max((worker.peak_transfers for worker in prefill), default=0)
    grant = wanted_blocks(prefill)
    if not peak or grant is None:
        return skip(name, "too few transfers were seen", peak_transfers=peak)
    buffers = GRANTS_PER_TRANSFER * peak
    wanted = buffers * grant
    configured = min((worker.pool or {}).get("total", 0) for worker in prefill)
    figures = {
        "peak_transfers": peak,
        "recommended_blocks": wanted,
        "recommended_mib": round(wanted * _layout(prefill).block_bytes / 2**20, 1),
        "configured_blocks": configured,
    }
    text = (
        f"{peak} transfers at once at most, {GRANTS_PER_TRANSFER} grants of {grant} blocks for "
        f"each: {wanted} blocks ({figures['recommended_mib']:,} MiB); the pool has {configured}"
    )
    if configured >= wanted:
        return ok(name, text, **figures)
    action = (
        f"{POOL_BUFFERS.flag} {buffers} ({POOL_BUFFERS.env}) with {DEFAULT_BLOCKS.flag} {grant}, "
        "on the prefill workers"
    )
    return warn(name, text, action, **figures)


def wanted_blocks(prefill: Sequence[Description]) -> int | None:
    """Blocks that hold the length which three of four do not exceed; None: not known yet."""
    p75s = _p75s(prefill)
    if not p75s:
        return None
    return _layout(prefill).blocks_for(max(p75s))


def _p75s(prefill: Sequence[Description]) -> list[int]:
    return [w.lengths.p75 for w in prefill if w.lengths and w.lengths.p75]


def _layout(prefill: Sequence[Description]) -> Layout:
    return next(layout for worker in prefill if (layout := worker.known_layout))
