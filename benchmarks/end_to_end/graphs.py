# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The graphs that are measured: the same frontend, model and engine flags, other workers.

Each process computes with its share of the cores: with all of them, threads of one process wait
for those that another holds up, which makes every graph slower.

Everything else is at its defaults, but for one thing: Dynamo's encode workers have an embedding
cache that is off by default. It is on here, as ours is.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from examples.local_stack import StackConfig

MODEL: Final = Path(__file__).resolve().parents[2] / "examples" / "demo_model" / "weights"
MODEL_NAME: Final = "tiny-vlm"
DTYPE: Final = "float32"

UPSTREAM_MODULE: Final = "dynamo.sglang"
# Names the model's image token to Dynamo's encode worker, which does not start without.
UPSTREAM_TEMPLATE: Final = "qwen2-vl"

OURS: Final = "ours"
LOCAL: Final = "local"
NIXL_READ: Final = "nixl-read"
NIXL_WRITE: Final = "nixl-write"
AGGREGATED: Final = "aggregated"
UPSTREAM: Final = (LOCAL, NIXL_READ, NIXL_WRITE)
"""Dynamo's own encode and prefill workers, by embedding transfer mode."""

MOST_ENCODE_WORKERS: Final = 2

THREADS: Final = max(1, (os.cpu_count() or 1) // 2)
"""That compute, in each process: an encode worker and an engine work at the same time."""
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": str(THREADS)}


@dataclass(frozen=True)
class Graph:
    """One contender, with the most workers that it is measured with."""

    name: str
    config: StackConfig

    @property
    def phases(self) -> tuple[int, ...]:
        """Numbers of encode workers to measure with, one after the other.

        There are as many for a graph without them, so that every picture is shown to every graph.
        """
        most = self.config.num_encode
        return (most, 1) if most else (0, 0)


def _ours() -> Graph:
    config = StackConfig(
        MODEL, MODEL_NAME, dtype=DTYPE, num_encode=MOST_ENCODE_WORKERS, env=_ENVIRONMENT
    )
    return Graph(OURS, config)


def _upstream(mode: str) -> Graph:
    """Its encode workers take the frontend's requests, and call the worker with the engine."""
    transfer = ("--enable-multimodal", "--embedding-transfer-mode", mode)
    config = StackConfig(
        MODEL,
        MODEL_NAME,
        dtype=DTYPE,
        env=_ENVIRONMENT,
        num_encode=MOST_ENCODE_WORKERS,
        with_processor=False,
        modules={"encode": UPSTREAM_MODULE, "prefill": UPSTREAM_MODULE},
        encode_args=(
            *transfer,
            *("--disaggregation-mode", "encode"),
            *("--chat-template", UPSTREAM_TEMPLATE),
            *("--multimodal-embedding-cache-capacity-gb", "1"),
        ),
        prefill_args=(*transfer, "--dedicated-mm-encoder", "--disaggregation-mode", "pd"),
    )
    return Graph(mode, config)


def _aggregated() -> Graph:
    """One worker that encodes, prefills and decodes: no hand-off."""
    config = StackConfig(
        MODEL,
        MODEL_NAME,
        dtype=DTYPE,
        env=_ENVIRONMENT,
        num_encode=0,
        with_processor=False,
        modules={"prefill": UPSTREAM_MODULE},
        prefill_args=("--enable-multimodal",),
    )
    return Graph(AGGREGATED, config)


GRAPHS: Final = (_ours(), *(_upstream(mode) for mode in UPSTREAM), _aggregated())
