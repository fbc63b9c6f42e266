# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the answers of all workers come to: rates, waits, failures. No I/O; times are arguments.

The classes of the first part read what workers say. Workers of other releases may say more, or
less: what is unknown is ignored, what is missing counts nothing. Those of the second part are what
is shown, and their fields are those of `--json` (docs/observability.md).
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dynamo.sglang_mm_resume.doctor.graph import COMPONENTS
from dynamo.sglang_mm_resume.top.collect import Answer

#: Raised when a field of the JSON object is renamed or removed, or means something else.
JSON_VERSION: Final = 1

#: Rates and shares are those of the last minute, or of what was seen of it.
WINDOW_S: Final = 60.0

#: The objectives of docs/tuning.md.
MAX_RESUME_RATE: Final = 0.25
MAX_WAIT_S: Final = 0.01
MAX_POOL_USE: Final = 0.8

Count = Annotated[int, Field(ge=0)]
Counts = dict[str, Count]


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


# --- What workers say ---


class Pool(_Said):
    """Blocks by state; `cached` ones are free for whoever needs them."""

    free: Count
    held: Count
    cached: Count = 0
    quarantined: Count
    total: Annotated[int, Field(ge=1)]
    peak_used: Count = 0

    @property
    def use(self) -> float:
        """The share that nobody else can have."""
        return (self.held + self.quarantined) / self.total


class Progress(_Said):
    """How far a transfer is; `total_tokens` is None until its length is known."""

    rounds: Count
    tokens: Count
    total_tokens: Count | None = None
    age_s: Annotated[float, Field(ge=0)] = 0.0


class Values(_Said):
    """A histogram: how many values do not exceed each of `bounds`, and, at last, all of them."""

    bounds: tuple[float, ...]
    counts: tuple[Count, ...]

    @model_validator(mode="after")
    def _one_more(self) -> Self:
        if len(self.counts) != len(self.bounds) + 1 or list(self.bounds) != sorted(self.bounds):
            raise ValueError("a histogram has ascending bounds, and one count more")
        return self

    def quantile(self, share: float) -> float | None:
        """The value that this share does not exceed, as PromQL estimates it; None without any."""
        rank = share * sum(self.counts)
        if not rank:
            return None
        below = [0, *accumulate(self.counts)]
        place = next(i for i, count in enumerate(below[1:]) if count >= rank)
        if place == len(self.bounds):
            return self.bounds[-1] if self.bounds else None
        lower = self.bounds[place - 1] if place else 0.0
        inside = (rank - below[place]) / self.counts[place]
        return lower + (self.bounds[place] - lower) * inside


class Totals(_Said):
    """Since the start of a worker."""

    requests: Count = 0
    embeddings_assembled: Count = 0
    embeddings_resumed: Count = 0
    bytes_written: Count = 0
    bytes_assembled: Count = 0
    cache_hits: Count = 0
    cache_misses: Count = 0
    buffer_wait_seconds: dict[str, Values] = {}
    first_token_seconds: dict[str, Values] = {}
    # Failures.
    errors: Counts = {}
    encode_retries: Count = 0
    prefill_retries: Count = 0
    encode_fallbacks: Count = 0
    write_failures: Count = 0
    reasons: Counts = {}
    malformed_notices: Count = 0
    stranger_notices: Count = 0
    peer_probes: dict[str, Counts] = {}
    reregistrations: Count = 0


class Status(_Said):
    """The part of a worker's status that is shown."""

    role: str
    namespace: str = ""
    pool: Pool | None = None
    transfers: dict[str, str] = {}
    progress: dict[str, Progress] = {}
    requests: Count = 0
    engine_requests: Count = 0
    waiting: Count = 0
    encodes_waiting: Count = 0
    writes_in_flight: Count = 0
    items_waiting: Counts = {}
    assembled_tokens: Count = 0
    refusals: Counts = {}
    oddities: Counts = {}
    totals: Totals = Totals()

    @property
    def failures(self) -> Counter[str]:
        """Everything that went wrong since the start, by name; what never did is left out."""
        totals = self.totals
        plain = (
            *("encode_retries", "prefill_retries", "encode_fallbacks", "write_failures"),
            *("malformed_notices", "stranger_notices", "reregistrations"),
        )
        found = Counter({name: getattr(totals, name) for name in plain})
        for name, counts in (
            ("error", totals.errors),
            ("transfer", totals.reasons),
            ("refusal", self.refusals),
            ("oddity", self.oddities),
        ):
            found.update({f"{name}:{kind}": count for kind, count in counts.items()})
        for peer, counts in totals.peer_probes.items():
            found[f"probe:{peer}"] = counts.get("failed", 0)
        return +found

    @property
    def peak_use(self) -> float | None:
        """The share of a prefill worker's pool that was ever in use; others fill theirs."""
        if self.pool is None or self.role != "prefill":
            return None
        return round(self.pool.peak_used / self.pool.total, 4)

    @property
    def waits(self) -> Values | None:
        """Waits for blocks, of all kinds together."""
        return _together(self.totals.buffer_wait_seconds.values())

    @property
    def first_tokens(self) -> Values | None:
        return _together(self.totals.first_token_seconds.values())

    def is_after(self, earlier: "Status") -> bool:
        """False if the worker has begun anew since: a counter is less than it was."""
        grows = (
            *("requests", "embeddings_assembled", "bytes_written", "bytes_assembled"),
            *("cache_hits", "cache_misses"),
        )
        return all(getattr(self.totals, n) >= getattr(earlier.totals, n) for n in grows) and not (
            earlier.failures - self.failures
        )


def read(said: Any) -> Status:
    """Raises ValueError saying what is wrong with an answer."""
    try:
        return Status.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise ValueError(f"{where}: {first['msg']}") from None


# --- What is shown ---


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Transfer(_Shown):
    """One that is not closed. What its worker does not tell is None."""

    id: str
    state: str
    rounds: int | None = None
    tokens: int | None = None
    total_tokens: int | None = None
    tokens_per_s: float | None = None
    age_s: float | None = None


class Blocks(_Shown):
    """A pool; `use` is the share that is held or quarantined."""

    free: int
    held: int
    cached: int
    quarantined: int
    total: int
    peak_used: int
    use: float


class Worker(_Shown):
    """One worker. `error`: why it says nothing now; the rest is then what it said last.

    `silent_s`: seconds since it last did; None if it never has.
    """

    name: str
    role: str
    namespace: str
    error: str | None
    silent_s: float | None
    pool: Blocks | None = None
    transfers: Sequence[Transfer] = ()
    waiting: Mapping[str, int] = {}
    under_way: Mapping[str, int] = {}
    per_s: Mapping[str, float] = {}
    resume_rate: float | None = None
    wait_p99_s: float | None = None
    first_token_p95_s: float | None = None
    cache_hit_rate: float | None = None
    failures: Mapping[str, int] = {}
    recent_failures: Mapping[str, int] = {}


class Objective(_Shown):
    """`recent`: over the window; `since_start` of the workers. None: nothing to judge by."""

    limit: float
    recent: float | None
    since_start: float | None


class View(_Shown):
    """Everything, at one moment. `window_s`: what rates and recent figures are taken over."""

    version: int = JSON_VERSION
    window_s: float
    resume_rate: Objective
    wait_p99_s: Objective
    pool_use: Objective
    workers: Sequence[Worker]

    @property
    def complete(self) -> bool:
        """Whether there are workers, and all of them answer."""
        return bool(self.workers) and all(worker.error is None for worker in self.workers)


# --- From the one to the other ---


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    status: Status


class History:
    """What every worker has said within the window. One look after the other is added."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[_Sample]] = {}
        self._errors: dict[str, str] = {}

    def add(self, answers: Sequence[Answer], now: float) -> None:
        """One look at all workers. Those that are not among the answers any more are forgotten."""
        for name in set(self._samples) - {answer.name for answer in answers}:
            del self._samples[name]
        self._errors = {}
        for answer in answers:
            samples = self._samples.setdefault(answer.name, deque())
            if answer.error:
                self._errors[answer.name] = answer.error
                continue
            try:
                status = read(answer.said)
            except ValueError as error:
                self._errors[answer.name] = f"its answer is not a worker's: {error}"
                continue
            if samples and not status.is_after(samples[-1].status):
                samples.clear()
            samples.append(_Sample(now, status))
            while now - samples[0].at > WINDOW_S and len(samples) > 1:
                samples.popleft()

    def view(self, now: float) -> View:
        """What is known now."""
        spans = {name: _Span(list(samples)) for name, samples in self._samples.items()}
        known = [span for span in spans.values() if span.samples]
        recent = [span.waits for span in known]
        workers = [_worker(name, span, self._errors.get(name), now) for name, span in spans.items()]
        roles = list(COMPONENTS)
        workers.sort(key=lambda w: (roles.index(w.role) if w.role in roles else len(roles), w.name))
        return View(
            window_s=round(max((span.seconds for span in known), default=0.0), 3),
            resume_rate=Objective(
                limit=MAX_RESUME_RATE,
                recent=_ratio(
                    sum(span.grown("embeddings_resumed") for span in known),
                    sum(span.grown("embeddings_assembled") for span in known),
                ),
                since_start=_ratio(
                    sum(span.last.totals.embeddings_resumed for span in known),
                    sum(span.last.totals.embeddings_assembled for span in known),
                ),
            ),
            wait_p99_s=Objective(
                limit=MAX_WAIT_S,
                recent=_quantile(_together(w for w in recent if w), 0.99),
                since_start=_quantile(_together(w for s in known if (w := s.last.waits)), 0.99),
            ),
            pool_use=Objective(
                limit=MAX_POOL_USE,
                recent=max((round(p.use, 4) for s in known if (p := s.last.pool)), default=None),
                since_start=max((peak for s in known if (peak := s.last.peak_use)), default=None),
            ),
            workers=workers,
        )


@dataclass(frozen=True, slots=True)
class _Span:
    """What one worker said in the window: its first word, and its last."""

    samples: Sequence[_Sample]

    @property
    def last(self) -> Status:
        return self.samples[-1].status

    @property
    def first(self) -> Status:
        return self.samples[0].status

    @property
    def seconds(self) -> float:
        return self.samples[-1].at - self.samples[0].at

    @property
    def waits(self) -> Values | None:
        return _less(self.last.waits, self.first.waits)

    def grown(self, total: str) -> int:
        """By how much one of the totals has grown."""
        return int(getattr(self.last.totals, total) - getattr(self.first.totals, total))

    def per_s(self, total: str) -> float:
        return round(self.grown(total) / self.seconds, 3) if self.seconds else 0.0

    def transfers(self) -> Iterator[Transfer]:
        """All that are not closed, the oldest first."""
        before = self.samples[-2] if len(self.samples) > 1 else None
        for name, state in self.last.transfers.items():
            progress = self.last.progress.get(name)
            if progress is None:
                yield Transfer(id=name, state=state)
                continue
            earlier = before.status.progress.get(name) if before else None
            yield Transfer(
                id=name,
                state=state,
                rounds=progress.rounds,
                tokens=progress.tokens,
                total_tokens=progress.total_tokens,
                tokens_per_s=_speed(progress, earlier, self.samples[-1].at, before),
                age_s=progress.age_s,
            )


def _speed(
    progress: Progress, earlier: Progress | None, at: float, before: _Sample | None
) -> float | None:
    """Tokens per second since the last look, or since the transfer began."""
    if earlier is not None and before is not None and at > before.at:
        return max(0.0, round((progress.tokens - earlier.tokens) / (at - before.at), 1))
    return round(progress.tokens / progress.age_s, 1) if progress.age_s else None


def _worker(name: str, span: _Span, error: str | None, now: float) -> Worker:
    if not span.samples:
        return Worker(name=name, role="", namespace="", error=error or "", silent_s=None)
    status = span.last
    return Worker(
        name=name,
        role=status.role,
        namespace=status.namespace,
        error=error,
        silent_s=round(now - span.samples[-1].at, 3),
        pool=_blocks(status.pool) if status.pool else None,
        transfers=sorted(span.transfers(), key=lambda t: -(t.age_s or 0.0)),
        waiting=_waiting(status),
        under_way=_under_way(status),
        per_s=_per_s(span),
        resume_rate=_ratio(span.grown("embeddings_resumed"), span.grown("embeddings_assembled")),
        wait_p99_s=_quantile(span.waits, 0.99),
        first_token_p95_s=_quantile(_less(status.first_tokens, span.first.first_tokens), 0.95),
        cache_hit_rate=_ratio(
            span.grown("cache_hits"), span.grown("cache_hits") + span.grown("cache_misses")
        ),
        failures=dict(status.failures),
        recent_failures=dict(status.failures - span.first.failures),
    )


def _blocks(pool: Pool) -> Blocks:
    return Blocks(**pool.model_dump(), use=round(pool.use, 4))


def _waiting(status: Status) -> dict[str, int]:
    """What waits at a worker, and what for."""
    match status.role:
        case "processor":
            return {f"{role} worker": count for role, count in status.items_waiting.items()}
        case "encode":
            return {"tower": status.encodes_waiting}
        case "prefill":
            return {"blocks": status.waiting}
        case _:
            return {}


def _under_way(status: Status) -> dict[str, int]:
    match status.role:
        case "processor":
            return {"requests": status.requests}
        case "encode":
            return {"transfers": len(status.transfers), "writes": status.writes_in_flight}
        case "prefill":
            return {
                "transfers": len(status.transfers),
                "engine requests": status.engine_requests,
                "assembled tokens": status.assembled_tokens,
            }
        case _:
            return {"engine requests": status.engine_requests}


def _per_s(span: _Span) -> dict[str, float]:
    match span.last.role:
        case "processor":
            return {"requests": span.per_s("requests")}
        case "encode":
            return {"bytes written": span.per_s("bytes_written")}
        case "prefill":
            return {
                "embeddings": span.per_s("embeddings_assembled"),
                "bytes assembled": span.per_s("bytes_assembled"),
            }
        case _:
            return {}


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _quantile(values: Values | None, share: float) -> float | None:
    return values.quantile(share) if values else None


def _together(found: Iterable[Values]) -> Values | None:
    """All values; of histograms that differ in their bounds, those like the first."""
    values = list(found)
    alike = [v.counts for v in values if v.bounds == values[0].bounds]
    if not alike:
        return None
    return Values(bounds=values[0].bounds, counts=tuple(map(sum, zip(*alike, strict=True))))


def _less(later: Values | None, earlier: Values | None) -> Values | None:
    """The values that were added in between."""
    if later is None or earlier is None or later.bounds != earlier.bounds:
        return later
    counts = (max(0, a - b) for a, b in zip(later.counts, earlier.counts, strict=True))
    return Values(bounds=later.bounds, counts=tuple(counts))
