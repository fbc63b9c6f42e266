# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Lines that docs/troubleshooting.md quotes, in the logs of workers to which it happened.

That each of its lines can be written at all is in tests/test_troubleshooting.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from examples.local_stack import LocalStack
from tests.support.client import Answer, ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME
from tests.support.faults import SEEN_DEADLINE_S, answers_again, paused
from tests.support.holds import Moment, holding
from tests.support.log_lines import TROUBLESHOOTING, Wording, quoted_lines
from tests.support.pictures import patchwork
from tests.support.worker_status import wait_until

DEPLOYMENT = FAULTS

PICTURE = data_url(patchwork(1310, 7, 6))
NO_PICTURE = "data:image/png;base64,AAAA"

#: Role to lines that its workers write when they start and meet.
OF_A_START = {
    "processor": ["processor … serves …"],
    "encode": [
        "buffer pool: … blocks of … tokens (… MiB) on …, default grant … blocks, layout …",
        "met prefill worker …: layout …",
    ],
    "prefill": [
        "buffer pool: … blocks of … tokens (… MiB) on …, default grant … blocks, layout …",
        "met encode worker …: layout …",
    ],
}
#: The same, while an encode worker with a transfer in flight hangs.
WHILE_IT_HANGS = {
    "processor": [
        "… goes to another encode worker: …",
        "encode worker … is suspected to be dead",
    ],
    "prefill": [
        "encode worker … failed a probe: …",
        "transfer … ended: transfer … was given up: encode worker … is dead",
        "encode worker … does not close …: …",
    ],
}
WHEN_IT_GOES_ON = {"processor": ["encode worker … answers again"]}


def test_lines_of_a_start(stack: LocalStack) -> None:
    assert _unseen(stack, OF_A_START) == []


def test_lines_of_a_bad_picture(stack: LocalStack) -> None:
    assert _ask(stack, NO_PICTURE).status == 400
    assert _unseen(stack, {"encode": ["refused (bad_request): …"]}) == []


def test_lines_of_a_worker_that_hangs_and_goes_on(stack: LocalStack) -> None:
    with ThreadPoolExecutor(1) as thread:
        with ExitStack() as hanging:
            with holding(stack, Moment.IN_THE_TOWER) as hold:
                asked = thread.submit(_ask, stack, PICTURE)
                hanging.enter_context(paused(stack, hold.caught()))
            # The last of them is written again and again, until it goes on.
            assert wait_until(lambda: not _unseen(stack, WHILE_IT_HANGS), SEEN_DEADLINE_S)
        assert asked.result(SEEN_DEADLINE_S).ok
    answers_again(stack)
    assert wait_until(lambda: not _unseen(stack, WHEN_IT_GOES_ON), SEEN_DEADLINE_S)


@pytest.mark.parametrize("lines", [OF_A_START, WHILE_IT_HANGS, WHEN_IT_GOES_ON])
def test_the_document_quotes_them(lines: dict[str, list[str]]) -> None:
    quoted = quoted_lines(TROUBLESHOOTING)
    assert {line for several in lines.values() for line in several} <= set(quoted)


def _unseen(stack: LocalStack, lines: dict[str, list[str]]) -> list[str]:
    """What no worker of its role has written."""
    return [
        f"{role}: {line}"
        for role, several in lines.items()
        for line in several
        if not any(Wording.of_document(line).is_in(text) for text in _log(stack, role))
    ]


def _log(stack: LocalStack, role: str) -> Iterator[str]:
    for path in stack.log_dir.glob(f"{role}*.log"):
        yield from path.read_text(errors="replace").splitlines()


def _ask(stack: LocalStack, url: str) -> Answer:
    return ask(stack.base_url, MODEL_NAME, [url], "What is this?", 4)
