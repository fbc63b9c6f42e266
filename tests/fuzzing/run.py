# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Sends requests, several at once, and notes what broke meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import httpx

from examples.local_stack import LocalStack, StackError
from tests.fuzzing.bystander import Bystander, Question
from tests.fuzzing.messages import WEB
from tests.fuzzing.requests import Request
from tests.fuzzing.watch import Watch
from tests.support.client import Answer, send
from tests.support.deployments import READY_DEADLINE_S
from tests.support.worker_status import leftovers, wait_until

CLIENTS = 6
CLIENT_TIMEOUT_S = 60.0
"""Longer than all time-outs of the deployment together: what takes longer was lost."""
HOME_DEADLINE_S = 30.0
DEATH_IS_SEEN_S = 3.0
"""After a bad answer, this long is looked for a process whose end explains it."""
HUNG_S = 30.0
"""A bystander who waits for longer than this is not waited for: its worker is started anew."""
CHECK_EVERY_S = 0.2
SUSPECTS = 12
#: What a deployment may say to a request that is not at fault: it has no room, or no time left.
DELIBERATE = (503, 504, 529)


@dataclass
class Problem:
    """What must not happen, and the requests that may have brought it about."""

    what: str
    requests: list[Request]

    @property
    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {"what": self.what, "requests": [request.as_dict for request in self.requests]}


@dataclass
class Report:
    """What happened, for people and for a file."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    bystander_answers: int = 0
    bystander_slowest_s: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing broke, and somebody was there to see it."""
        return not self.problems and not self.left_behind and self.bystander_answers > 0

    @property
    def as_dict(self) -> dict[str, Any]:
        """For a file."""
        return {
            **vars(self),
            "outcomes": dict(self.outcomes),
            "problems": [problem.as_dict for problem in self.problems],
            "ok": self.ok,
        }


class Fuzz:
    """One run over one stack."""

    def __init__(self, stack: LocalStack, questions: Sequence[Question], web: str) -> None:
        """`web`: root of the server with `hostile_media.PAGES`."""
        self.report = Report()
        self._stack = stack
        self._web = web
        self._watch = Watch(stack)
        self._bystander = Bystander(stack, questions, self._on_complaint)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._healthy = threading.Event()
        self._healthy.set()
        self._under_way: list[Request] = []
        self._recent: deque[Request] = deque(maxlen=SUSPECTS)

    def run(self, requests: Iterable[Request], seconds: float, clients: int = CLIENTS) -> Report:
        """Send them until there are no more or the time is over."""
        started_at = time.monotonic()
        queue = iter(requests)
        threads = [threading.Thread(target=self._client, args=(queue,)) for _ in range(clients)]
        self._bystander.start()
        for thread in threads:
            thread.start()
        try:
            while any(t.is_alive() for t in threads) and time.monotonic() - started_at < seconds:
                self._check()
                self._over.wait(CHECK_EVERY_S)
        finally:
            self._over.set()
            while any(thread.is_alive() for thread in threads):
                self._check()
                threads[0].join(CHECK_EVERY_S)
            self._bystander.stop()
        self._check()
        if not wait_until(lambda: not leftovers(self._stack), HOME_DEADLINE_S):
            self.report.left_behind = leftovers(self._stack)
        self.report.seconds = time.monotonic() - started_at
        self.report.bystander_answers = self._bystander.answers
        self.report.bystander_slowest_s = self._bystander.slowest_s
        self.report.slowest = sorted(self.report.slowest, reverse=True)[:10]
        return self.report

    # --- Clients ---

    def _client(self, queue: Iterator[Request]) -> None:
        while not self._over.is_set():
            self._healthy.wait()
            with self._lock:
                request = next(queue, None)
            if request is None:
                return
            with self._noted(request):
                self._send(request)

    @contextmanager
    def _noted(self, request: Request) -> Iterator[None]:
        """Among those under way; afterwards among the recent ones."""
        with self._lock:
            self._under_way.append(request)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.remove(request)
                self._recent.append(request)

    def _send(self, request: Request) -> None:
        if request.hang_up_after_s is not None:
            self._hang_up(request, request.hang_up_after_s)
            return
        url = f"{self._stack.base_url}/{request.path}"
        started_at = time.monotonic()
        try:
            content = self._content(request)
            answer = send(url, content, CLIENT_TIMEOUT_S, request.headers)
        except httpx.TimeoutException:
            self._broke(f"no answer in {CLIENT_TIMEOUT_S:g} s", request)
        except httpx.TransportError as error:
            self._broke(f"the connection broke: {error!r}", request)
        except (LookupError, TypeError, ValueError) as error:
            self._broke(f"the answer cannot be read: {error!r}", request)
        else:
            self.report.slowest.append((round(time.monotonic() - started_at, 1), request.name))
            self._judge(request, answer)

    def _judge(self, request: Request, answer: Answer) -> None:
        status = status_of(answer)
        if status >= 500 and status not in DELIBERATE:
            self._broke(f"status {status}: {answer.error}"[:500], request)
        else:
            self._count("answered" if status < 400 else f"refused with {status}")

    def _hang_up(self, request: Request, after_s: float) -> None:
        address = urlsplit(self._stack.base_url)
        connection = HTTPConnection(address.netloc, timeout=CLIENT_TIMEOUT_S)
        headers = {"Content-Type": "application/json"} | request.headers
        try:
            path = f"{address.path}/{request.path}"
            connection.request("POST", path, self._content(request), headers)
            self._over.wait(after_s)
        except (OSError, HTTPException):
            pass  # it was refused before all of it was sent
        finally:
            connection.close()
        self._count("hung up")

    def _content(self, request: Request) -> bytes:
        host, real = urlsplit(WEB).netloc, urlsplit(self._web).netloc
        return request.content.replace(host.encode(), real.encode())

    # --- What breaks ---

    def _broke(self, what: str, request: Request) -> None:
        """A bad answer; the end of a worker explains those of all requests that it had."""
        if self._is_explained():
            self._count("lost with a worker")
        else:
            self._problem(what, [request])

    def _on_complaint(self, what: str) -> None:
        if not self._is_explained():
            self._problem(what, self._suspects())

    def _is_explained(self) -> bool:
        return wait_until(lambda: not self._healthy.is_set(), DEATH_IS_SEEN_S)

    def _check(self) -> None:
        """Start anew what ended or hangs, so that the run can go on."""
        dead = self._watch.dead()
        hung = self._bystander.waits_s > HUNG_S
        if not dead and not hung:
            return
        what = f"ended: {', '.join(dead)}" if dead else f"no answer at all for {HUNG_S:g} s"
        self._problem(what, self._suspects())
        self._healthy.clear()
        try:
            self._heal(dead or ["prefill-0"])
        finally:
            self._healthy.set()

    def _heal(self, names: Sequence[str]) -> None:
        for name in names:
            self._stack.kill(name)
            self._stack.restart(name)
        try:
            self._stack.wait_ready(READY_DEADLINE_S)
        except StackError as error:  # another one ended meanwhile: it is next
            self._problem(f"while it was started again: {error}"[:300], [])
        self._watch.begin()

    def _suspects(self) -> list[Request]:
        with self._lock:
            return [*self._under_way, *reversed(self._recent)][:SUSPECTS]

    # --- Notes ---

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.report.outcomes[outcome] += 1

    def _problem(self, what: str, requests: list[Request]) -> None:
        names = ", ".join(request.name for request in requests)
        print(f"fuzz: problem: {what} ({names})", flush=True)
        with self._lock:
            self.report.outcomes["problem"] += 1
            self.report.problems.append(Problem(what, requests))


def status_of(answer: Answer) -> int:
    """Of the answer, or of the error that ended its stream."""
    if answer.error is None or answer.status != 200:
        return answer.status
    code = answer.error.get("code") if isinstance(answer.error, dict) else None
    return code if isinstance(code, int) else 500


def requests_in(text: str) -> list[Request]:
    """Of a file with problems, each once."""
    saved = [r for problem in json.loads(text)["problems"] for r in problem["requests"]]
    return list({r["name"]: Request(**r) for r in saved}.values())
