# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Ours, with a look at the clock around every public step: where the time of a hand-off goes.

Spans are taken on both sides. Copies and writes of different chunks overlap, so for each step
there is when it first began, when it last ended, and how long it took in sum.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

import torch

from benchmarks.contenders.ours import OurReceiver, OurWriter, ignore, make_memory
from benchmarks.workload import HandOff, Order, Setup
from dynamo.sglang_mm_resume.transport.copies import Copy
from dynamo.sglang_mm_resume.transport.memory import PoolMemory
from dynamo.sglang_mm_resume.transport.nixl_agent import NixlAgent, Write

#: Steps in order of their first beginning, as the tables show them.
TO_THREAD: Final = "to the thread that writes"
STAGING: Final = "copy into our blocks"
WRITE: Final = "NIXL write, and back to the loop"
NOTICE: Final = "notice on the receiver's loop"
ALLOCATION: Final = "memory of the final tensor"
GATHER: Final = "copy out of the blocks"
TAKEN: Final = "tensor handed over"
STEPS: Final = (TO_THREAD, STAGING, WRITE, NOTICE, ALLOCATION, GATHER, TAKEN)


@dataclass(frozen=True, slots=True)
class Span:
    """Of one step, in monotonic seconds."""

    step: str
    began: float
    ended: float


class Trace:
    """Spans of one process since the last `take`."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    @contextmanager
    def span(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(step, began)

    def add(self, step: str, began: float) -> None:
        """A span that ends now."""
        self._spans.append(Span(step, began, time.monotonic()))

    def take(self) -> list[Span]:
        taken, self._spans = self._spans, []
        return taken


class TracedMemory(PoolMemory):
    trace: Trace

    def scatter(self, rows: torch.Tensor, blocks: Sequence[int]) -> Copy:
        with self.trace.span(STAGING):
            return super().scatter(rows, blocks)

    def gather(self, blocks: Sequence[int], rows: torch.Tensor) -> None:
        with self.trace.span(GATHER):
            super().gather(blocks, rows)

    def empty_rows(self, num_tokens: int) -> torch.Tensor:
        with self.trace.span(ALLOCATION):
            return super().empty_rows(num_tokens)


class TracedAgent(NixlAgent):
    trace: Trace

    async def write(self, agent: str, write: Write) -> float:
        """What comes before the rows are loaded, and what after; the copy has a span of its own."""
        began = time.monotonic()
        loaded = began

        def load() -> Copy:
            nonlocal loaded
            self.trace.add(TO_THREAD, began)
            copy = write.load()
            loaded = time.monotonic()
            return copy

        seconds = await super().write(agent, replace(write, load=load))
        self.trace.add(WRITE, loaded)
        return seconds


class TracedReceiver(OurReceiver):
    def __init__(self) -> None:
        super().__init__()
        self._trace = Trace()

    async def answer(self, op: str, body: Any) -> Any:
        return self._trace.take() if op == "trace" else await super().answer(op, body)

    def _make_memory(self, setup: Setup) -> PoolMemory:
        return _traced_memory(setup, self._trace)

    def _on_notice(self, peer: str, payload: bytes) -> None:
        with self._trace.span(NOTICE):
            super()._on_notice(peer, payload)


class TracedWriter(OurWriter):
    async def start(self, setup: Setup, rows: torch.Tensor) -> None:
        self._trace = Trace()
        await super().start(setup, rows)

    async def hand_off(self, rows: torch.Tensor, number: int, order: Order) -> HandOff:
        self._trace.take()
        done = await super().hand_off(rows, number, order)
        spans = [*self._trace.take(), *await self.peer.ask("trace")]
        (exists,) = done.details["exists"]
        spans.append(Span(TAKEN, done.ended, done.ended))
        done.details = steps_of(spans, exists)
        return done

    def _make_memory(self, setup: Setup) -> PoolMemory:
        return _traced_memory(setup, self._trace)

    def _make_agent(self) -> NixlAgent:
        agent = TracedAgent(f"encode-{uuid4().hex}", self._memory, ignore)
        agent.trace = self._trace
        return agent


def _traced_memory(setup: Setup, trace: Trace) -> TracedMemory:
    memory = make_memory(setup, TracedMemory)
    memory.trace = trace
    return memory


def steps_of(spans: Sequence[Span], origin: float) -> dict[str, list[float]]:
    """Per step: first beginning and last end, from `origin`, and the sum of its spans (seconds)."""
    steps: dict[str, list[float]] = {}
    for step in STEPS:
        found = [span for span in spans if span.step == step]
        if found:
            steps[step] = [
                min(span.began for span in found) - origin,
                max(span.ended for span in found) - origin,
                sum(span.ended - span.began for span in found),
            ]
    return steps
