# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`--tp-size` and `--dp-size` of either side: several processes compute, together
over gloo or side by side, and every answer is that of one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import pytest
from PIL import Image

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import MODEL_NAME, Deployment, Keeper, pool_args
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import leftovers, wait_until

QUESTION = "What is this?"
MAX_TOKENS = 12
SIZES = [(4, 4), (7, 6), (10, 9), (15, 11)]
IMAGES = [patchwork(700 + i, *SIZES[i % len(SIZES)]) for i in range(8)]
IDLE_DEADLINE_S = 10.0
#: SGLang gives each rank on a CPU a NUMA node of its own, unless told which cores it shall have.
CORES = ("SGLANG_CPU_OMP_THREADS_BIND", "0|1")


@dataclass(frozen=True)
class Case:
    """A flag of one role, and how many processes of which name its worker has then."""

    role: str
    flag: str
    process: str
    count: int

    def __str__(self) -> str:
        return f"{self.role}{self.flag}"

    @property
    def deployment(self) -> Deployment:
        return Deployment(
            f"{self.role}{self.flag}",
            workers=pool_args(block_size=16, default_blocks=2, buffers=4),
            env=(CORES,),
            **{self.role: (self.flag, "2")},
        )


#: In every merge only one: a start of ranks takes a minute.
EVERY_MERGE = Case("prefill", "--tp-size", "sglang::scheduler", 2)
NIGHTLY = [
    Case("encode", "--tp-size", "spawn_main", 1),
    Case("encode", "--dp-size", "spawn_main", 1),
    Case("prefill", "--dp-size", "sglang::scheduler", 2),
]
CASES = [EVERY_MERGE, *(pytest.param(case, marks=pytest.mark.nightly) for case in NIGHTLY)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pictures_at_once_are_exact(keeper: Keeper, oracle: Oracle, case: Case) -> None:
    stack = keeper.get(case.deployment)
    assert _count(stack, case) == case.count
    expected = [oracle.generate([image], QUESTION, MAX_TOKENS) for image in IMAGES]
    with ThreadPoolExecutor(len(IMAGES)) as threads:
        answers = list(threads.map(lambda image: _ask(stack, [image]), IMAGES))
    for answer, right in zip(answers, expected, strict=True):
        assert_exact(answer, right)
    both = [IMAGES[1], IMAGES[3]]
    assert_exact(_ask(stack, both), oracle.generate(both, QUESTION, MAX_TOKENS))
    assert wait_until(lambda: not leftovers(stack), IDLE_DEADLINE_S), leftovers(stack)


def _count(stack: LocalStack, case: Case) -> int:
    """Processes of the worker's own that have this in their command lines."""
    (worker,) = [p.pid for p in stack.processes if p.name == f"{case.role}-0"]
    children = psutil.Process(worker).children(recursive=True)
    return sum(case.process in " ".join(child.cmdline()) for child in children)


def _ask(stack: LocalStack, images: list[Image.Image]) -> Answer:
    urls = [data_url(image) for image in images]
    return ask(stack.base_url, MODEL_NAME, urls, QUESTION, MAX_TOKENS, logprobs=True)
