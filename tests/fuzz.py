# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Random requests to the whole deployment, while a bystander's answers must stay exact.

    python -m tests.fuzz --minutes 5 --seed 1
    python -m tests.fuzz --replay fuzz.json

Ends with a report, and with exit code 1 if a process ended, a request was answered with a status of
5xx that is no refusal, the bystander got another answer than ever or waited for more than 5 s, or
something was left behind. The requests that may have been the cause are written to a file, which
`--replay` sends again, one by one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzzing.bystander import questions_for
from tests.fuzzing.requests import Request, request_of
from tests.fuzzing.run import CLIENTS, Fuzz, Report, requests_in
from tests.support.deployments import FAULTS
from tests.support.hostile_media import PAGES
from tests.support.load import deployed, sampled_memory
from tests.support.web import serve

SHOW_EVERY = 50
REPLAY_MINUTES = 60.0


def _requests(seed: int, first: int, count: int | None) -> Iterator[Request]:
    numbers = itertools.count(first) if count is None else range(first, first + count)
    for index in numbers:
        if index % SHOW_EVERY == 0:
            print(f"fuzz: request {seed}/{index}", flush=True)
        yield request_of(seed, index)


def _print(report: Report, peak_mib: dict[str, int]) -> None:
    print(f"\n{report.seconds:.0f} s\n\nrequests by outcome")
    for name, count in report.outcomes.most_common():
        print(f"  {name:26} {count:6}")
    print(f"answers of the bystander     {report.bystander_answers:6}")
    print(f"the slowest of them          {report.bystander_slowest_s:6.1f} s")
    print("slowest requests             " + ", ".join(f"{n} {s} s" for s, n in report.slowest))
    print("peak memory in MiB           " + ", ".join(f"{k} {v}" for k, v in peak_mib.items()))
    print(f"problems                     {len(report.problems):6}")
    for problem in report.problems:
        print(f"  {problem.what}: {', '.join(request.name for request in problem.requests)}")
    print(f"left behind                  {len(report.left_behind):6}")
    for line in report.left_behind:
        print(f"  {line}")


def main() -> int:
    """0 if nothing broke."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="how long to send (default: 5, or --replay)")
    parser.add_argument("--seed", type=int, default=1, help="of all requests")
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--requests", type=int, help="how many; without it, until time is over")
    parser.add_argument("--clients", type=int, help=f"how many at once (default: {CLIENTS}, or 1)")
    parser.add_argument("--replay", type=Path, help="send what this file has, one by one")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz.json"), help="the report")
    arguments = parser.parse_args()
    if arguments.replay is None:
        requests = _requests(arguments.seed, arguments.first, arguments.requests)
        minutes, clients = 5.0, CLIENTS
    else:
        requests = iter(requests_in(arguments.replay.read_text()))
        minutes, clients = REPLAY_MINUTES, 1
    folder = Path(tempfile.mkdtemp(prefix="mm-resume-fuzz-"))
    print("fuzz: starting the deployment", flush=True)
    with deployed(FAULTS, folder) as (stack, oracle), serve(PAGES) as web:
        fuzz = Fuzz(stack, questions_for(oracle), web)
        with sampled_memory(stack) as peak_mib:
            seconds = 60 * (arguments.minutes or minutes)
            report = fuzz.run(requests, seconds, arguments.clients or clients)
    _print(report, peak_mib)
    if report.ok:
        print("nothing broke")
        return 0
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report.as_dict, indent=1) + "\n")
    print(f"logs: {folder / 'logs'}\nrequests: {arguments.out}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
