# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Mixed load on the whole graph while faults are injected at random; nothing may be lost by it.

    python -m tests.soak --minutes 10 --seed 1

Every answer is compared with transformers' own, token by token. Ends with a report, and with exit
code 1 if an answer was wrong, a request got neither an answer nor a proper refusal, or a block, a
task or a transfer was left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, READY_DEADLINE_S, Deployment
from tests.support.discovery import BACK_DEADLINE_S, LEASE_S, reregistrations
from tests.support.faults import asking
from tests.support.load import deployed, sampled_memory
from tests.support.oracle import Oracle
from tests.support.pictures import patchwork
from tests.support.worker_status import get, leftovers, status_of, wait_until

DEPLOYMENT = Deployment(
    "soak",
    workers=FAULTS.workers,
    prefill=FAULTS.prefill,
    processor=FAULTS.processor,
    env=FAULTS.env,
    frontend_module=FAULTS.frontend_module,
    num_encode=2,
    num_prefill=2,
)
QUESTION = "What is this?"
MAX_TOKENS = 8
#: 16 to 400 tokens; the pool holds 128.
SIZES = [(4, 4), (6, 5), (8, 8), (12, 11), (15, 15), (20, 20)]
CLIENTS = 3
CLIENT_TIMEOUT_S = 90.0
"""Longer than all time-outs of the graph together: what takes longer was lost."""
PAUSES_S = (1.0, 4.0, 8.5, 14.0)
"""Below the time-outs, between them, beyond them, and beyond the lease in Dynamo's discovery (10 s)
and the few seconds in which others notice its end."""
BURST = 40
BETWEEN_FAULTS_S = (3.0, 10.0)
HOME_DEADLINE_S = 90.0


@dataclass(frozen=True)
class Question:
    """A request and the one right answer to it; no answer is right if the request is not."""

    images: tuple[str, ...]
    token_ids: list[int] | None


@dataclass
class Report:
    """What happened, for people and for `--json`."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)
    peak_mib: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems and not self.left_behind and bool(self.outcomes["exact"])


class Soak:
    """One run: clients, faults and a sampler of memory, until the time is over."""

    def __init__(self, stack: LocalStack, questions: Sequence[Question], seed: int) -> None:
        self.report = Report()
        self._stack = stack
        self._questions = questions
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._starting: set[str] = set()  # killed or ended by us, and not healthy again yet

    def run(self, seconds: float) -> Report:
        started_at = time.monotonic()
        clients = [
            threading.Thread(target=self._client, args=(random.Random(self._random.random()),))
            for _ in range(CLIENTS)
        ]
        for thread in clients:
            thread.start()
        try:
            with sampled_memory(self._stack) as self.report.peak_mib:
                while time.monotonic() - started_at < seconds:
                    self._over.wait(self._random.uniform(*BETWEEN_FAULTS_S))
                    self._inject()
                    _show(self.report, time.monotonic() - started_at, seconds)
        finally:
            self._over.set()
            for thread in clients:
                thread.join()
        self._stack.wait_ready(READY_DEADLINE_S)
        wait_until(lambda: not leftovers(self._stack), HOME_DEADLINE_S)
        self.report.left_behind = leftovers(self._stack)
        self.report.seconds = time.monotonic() - started_at
        self.report.totals = {
            name: status_of(self._stack, name)["totals"] for name in self._stack.worker_urls
        }
        return self.report

    # --- Load ---

    def _client(self, chance: random.Random) -> None:
        while not self._over.is_set():
            question = chance.choice(self._questions)
            kind = chance.choices(["ask", "stream", "hang-up"], [5, 3, 1])[0]
            if kind == "hang-up" and question.token_ids is not None:
                self._hang_up(question, chance.uniform(0.0, 0.5))
            else:
                self._ask(question, kind == "stream")

    def _ask(self, question: Question, stream: bool) -> None:
        try:
            answer = ask(
                self._stack.base_url,
                MODEL_NAME,
                question.images,
                QUESTION,
                MAX_TOKENS,
                stream,
                timeout_s=CLIENT_TIMEOUT_S,
            )
        except httpx.TimeoutException:
            self._problem(f"no answer in {CLIENT_TIMEOUT_S:g} s")
            return
        except httpx.TransportError as error:
            self._problem(f"connection broken: {error!r}")
            return
        outcome = _outcome(question, answer)
        self._count(outcome)
        if outcome in ("wrong", "unexpected"):
            self._problem(f"{outcome}: {answer}"[:1000])

    def _hang_up(self, question: Question, after_s: float) -> None:
        with asking(self._stack, question.images, QUESTION, 200):
            self._over.wait(after_s)
        self._count("hung up")

    # --- Faults ---

    def _inject(self) -> None:
        """One fault that leaves at least one worker of each role; others may be starting."""
        self._starting = {name for name in self._starting if not self._is_healthy(name)}
        faults: list[tuple[str, Callable[[], None], int]] = [("overload", self._burst, 2)]
        if "processor" not in self._starting:
            faults.append(("processor hung", lambda: self._pause("processor"), 1))
        if not self._starting:  # the processor waits for all others when it starts
            faults.append(("processor killed", lambda: self._kill("processor"), 2))
        for role in ("encode", "prefill"):
            up = [n for n in self._stack.worker_urls if n.startswith(role)]
            up = [name for name in up if name not in self._starting]
            if len(up) > 1:
                victim = self._random.choice(up)
                faults += [
                    (f"{role} worker hung", partial(self._pause, victim), 4),
                    (f"{role} worker killed", partial(self._kill, victim), 2),
                    (f"{role} worker drained", partial(self._drain, victim), 2),
                ]
        name, inject, _ = self._random.choices(faults, [weight for *_, weight in faults])[0]
        self.report.faults[name] += 1
        inject()
        if not wait_until(self._serves, READY_DEADLINE_S):
            self._problem(f"no exact answer after: {name}")

    def _is_healthy(self, name: str) -> bool:
        try:
            return get(f"{self._stack.worker_urls[name]}/health").status_code == 200
        except httpx.TransportError:
            return False

    def _kill(self, name: str) -> None:
        self._stack.kill(name)
        self._over.wait(self._random.choice(PAUSES_S))
        self._start(name)

    def _drain(self, name: str) -> None:
        code = self._stack.terminate(name, READY_DEADLINE_S)
        if code != 0:
            self._problem(f"{name} ended with exit code {code} after SIGTERM")
        self._start(name)

    def _start(self, name: str) -> None:
        self._stack.restart(name)
        self._starting.add(name)

    def _pause(self, name: str) -> None:
        seconds = self._random.choice(PAUSES_S)
        count = reregistrations(self._stack, name)
        self._stack.pause(name)
        self._over.wait(seconds)
        self._stack.unpause(name)
        if seconds > LEASE_S and not wait_until(
            lambda: reregistrations(self._stack, name) > count, BACK_DEADLINE_S
        ):
            self._problem(f"{name} stood still for {seconds:g} s and did not come back")

    def _burst(self) -> None:
        """Many more than are let in, at once."""
        questions = self._random.choices(self._questions, k=BURST)
        threads = [threading.Thread(target=self._ask, args=(q, False)) for q in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serves(self) -> bool:
        good = next(question for question in self._questions if question.images)
        answer = ask(self._stack.base_url, MODEL_NAME, good.images, QUESTION, MAX_TOKENS)
        return answer.ok and answer.token_ids == good.token_ids

    # --- Notes ---

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.report.outcomes[outcome] += 1

    def _problem(self, text: str) -> None:
        print(f"soak: problem: {text}", file=sys.stderr, flush=True)
        with self._lock:
            self.report.problems.append(text)


def _outcome(question: Question, answer: Answer) -> str:
    """One word; `wrong` and `unexpected` are what must not happen."""
    if question.token_ids is None and answer.status == 400:
        return "bad request refused"
    if answer.ok:
        return "exact" if answer.token_ids == question.token_ids else "wrong"
    # 404: the processor was killed or lost, and with it the model's entry. 504: it hung.
    code = (answer.error or {}).get("code", answer.status)
    if code in (503, 504, 404) and answer.finish_reason is None:
        return "refused" if answer.status != 200 else "broken off with an error"
    return "unexpected"


def questions_for(oracle: Oracle) -> list[Question]:
    """Pictures of all sizes, several at once, text alone, and what is no picture."""
    images = [patchwork(800 + i, *size) for i, size in enumerate(SIZES)]
    groups = [*([image] for image in images), images[:2], images[1:4], []]
    good = [
        Question(
            tuple(data_url(image) for image in group),
            oracle.generate(group, QUESTION, MAX_TOKENS).token_ids,
        )
        for group in groups
    ]
    return [*good, Question(("data:image/png;base64,AAAA",), None)]


def _show(report: Report, seconds: float, of_s: float) -> None:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(report.outcomes.items()))
    print(
        f"soak: {seconds:4.0f} of {of_s:.0f} s, {report.faults.total()} faults, {outcomes}, "
        f"{len(report.problems)} problems",
        flush=True,
    )


def _as_dict(report: Report) -> dict[str, Any]:
    counts = {"outcomes": dict(report.outcomes), "faults": dict(report.faults)}
    return {**vars(report), **counts, "ok": report.ok}


def _print(report: Report) -> None:
    print(f"\n{report.seconds:.0f} s\n\nrequests by outcome")
    for name, count in report.outcomes.most_common():
        print(f"  {name:26} {count:6}")
    print("faults injected")
    for name, count in report.faults.most_common():
        print(f"  {name:26} {count:6}")
    wrong = report.outcomes["wrong"]
    print(f"faults survived              {report.faults.total():6}")
    print(f"wrong answers                {wrong:6}")
    print(f"problems                     {len(report.problems):6}")
    print(f"blocks, tasks, transfers left{len(report.left_behind):6}")
    print(
        "peak memory in MiB           " + ", ".join(f"{k} {v}" for k, v in report.peak_mib.items())
    )
    for line in (*report.problems, *report.left_behind):
        print(f"  {line}")


def main() -> int:
    """0 if nothing was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the load")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the load")
    parser.add_argument("--json", type=Path, help="write the report to this file as well")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mm-resume-soak-"))
    print("soak: starting two encode and two prefill workers", flush=True)
    with deployed(DEPLOYMENT, folder) as (stack, oracle):
        soak = Soak(stack, questions_for(oracle), arguments.seed)
        report = soak.run(60 * arguments.minutes)
    _print(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(_as_dict(report), indent=1) + "\n")
    print(f"logs: {folder / 'logs'}" if not report.ok else "nothing was lost")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
