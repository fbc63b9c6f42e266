# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the figures should be, and whether they are. Ratios are of medians of the same run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.contenders import BARE, DYNAMO, OURS
from benchmarks.results import Results, ratio
from benchmarks.suites import allocator, concurrency, lengths, memory, pools, rounds
from benchmarks.workload import HIDDEN

NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Target:
    """A value that should be at most `limit`, or at least where `at_least`."""

    what: str
    value: float | None
    limit: float
    unit: str
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return NOT_MEASURED
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "met" if met else "not met"

    @property
    def target(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "value": None if self.value is None else round(self.value, 4),
            "unit": self.unit,
            "target": self.target,
            "verdict": self.verdict,
        }


def targets(results: Results) -> list[Target]:
    """All of them, in the order of the table; some may not have been measured."""
    return [
        *_lengths(results),
        *_pools(results),
        *_rounds(results),
        *_concurrency(results),
        *_memory(results),
        *_allocator(results),
    ]


def _lengths(results: Results) -> Iterator[Target]:
    for tokens, of_dynamo, of_floor in ((1024, 0.35, 1.6), (16384, 0.5, 2.0)):
        case = (tokens, HIDDEN)
        ours = results.median(lengths.NAME, lengths.TIME, case, OURS.name)
        dynamo = results.best(lengths.NAME, lengths.TIME, case, [c.name for c in DYNAMO])
        floor = results.median(lengths.NAME, lengths.TIME, case, BARE.name)
        what = f"{tokens:,} tokens"
        yield Target(f"{what} / Dynamo's best mode", ratio(ours, dynamo), of_dynamo, "x")
        yield Target(f"{what} / bare WRITE", ratio(ours, floor), of_floor, "x")


def _pools(results: Results) -> Iterator[Target]:
    def median(measure: str, pool: int) -> float | None:
        return results.median(pools.NAME, measure, (pool,), OURS.name)

    what = f"{pools.TOKENS:,} tokens through 16 blocks"
    small, ample = median(pools.TIME, 16), median(pools.TIME, pools.AMPLE)
    yield Target(f"{what} / through {pools.AMPLE}", ratio(small, ample), 1.35, "x")
    yield Target(f"{what}: rounds", median(pools.ROUNDS, 16), 8, "rounds", at_least=True)


def _rounds(results: Results) -> Iterator[Target]:
    def worst(measure: str, mode: str) -> float | None:
        found = [s for s in results.of(rounds.NAME, measure) if s.contender == mode and s.values]
        return max((series.median for series in found), default=None)

    yield Target(
        "one more round, pool full (worst median)", worst(rounds.EXTRA, rounds.WAITING), 3.0, "ms"
    )
    # A pool with room gives all that is missing at once: there is a second round, and no third.
    stall = results.median(rounds.NAME, rounds.STALL, (2,), rounds.AHEAD)
    yield Target("stall before the second round, pool has room", stall, 0.0, "ms")


def _concurrency(results: Results) -> Iterator[Target]:
    case = (64,)

    def median(measure: str, name: str) -> float | None:
        return results.median(concurrency.NAME, measure, case, name)

    throughput = concurrency.THROUGHPUT
    share = ratio(median(throughput, OURS.name), median(throughput, BARE.name))
    yield Target("64 at once: throughput / bare WRITE", share, 0.85, "x", at_least=True)
    waits = results.find(concurrency.NAME, concurrency.WAIT, case, OURS.name)
    wait = None if waits is None else waits.percentile(0.99)
    yield Target("64 at once: wait for blocks, p99", wait, 10.0, "ms")
    unfair = median(concurrency.UNFAIR, OURS.name)
    yield Target("64 at once: slowest writer / fastest", unfair, 2.0, "x")


def _memory(results: Results) -> Iterator[Target]:
    def worst(measure: str) -> float | None:
        values = (results.median(memory.NAME, measure, (role,), OURS.name) for role in memory.ROLES)
        return max((value for value in values if value is not None), default=None)

    ahead, configured = worst(memory.AHEAD), memory.POOL_BYTES / 2**20
    yield Target("memory taken in advance / pool as configured", ratio(ahead, configured), 1.1, "x")
    yield Target("extra memory per transfer / its embedding", worst(memory.EXTRA), 1.1, "x")
    yield Target("processor time of an idle worker", worst(memory.IDLE), 3.0, "% of a core")


def _allocator(results: Results) -> Iterator[Target]:
    medians = [s.median for s in results.of(allocator.NAME, allocator.TIME) if s.values]
    what = f"{allocator.AT_ONCE} of {allocator.BLOCKS:,} blocks taken and given back (worst median)"
    yield Target(what, max(medians, default=None), 20.0, "us")
