# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""A handle on tests/support/rogue_peer.py: one process, one command at a time."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from examples.local_stack import LocalStack

ROOT = Path(__file__).parents[2]
ANSWER_DEADLINE_S = 90.0


class Rogue:
    """A peer among those of a running stack. A context manager that leaves no process behind."""

    def __init__(self, stack: LocalStack) -> None:
        """Start the process; it joins with its first command."""
        with (stack.log_dir / "rogue.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.rogue_peer"],
                env=dict(stack.environment),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        """Nothing to do: it runs."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.vanish()

    def vanish(self) -> None:
        """SIGKILL: it leaves discovery without a word."""
        self._process.kill()
        self._process.communicate()

    def do(self, method: str, *arguments: Any) -> Any:
        """Result of a method of `rogue_peer.Peer`. Raises what it raised, as `RuntimeError`."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps([method, *arguments]), file=stdin, flush=True)
        # One line answers one command, so nothing waits in the buffer of `stdout` meanwhile.
        assert select.select([stdout], [], [], ANSWER_DEADLINE_S)[0], f"no answer to {method}"
        answer = json.loads(stdout.readline())
        if "raised" in answer:
            raise RuntimeError(answer["raised"])
        return answer["result"]

    def ask(self, endpoint: str, instance: int, payload: Any) -> dict[str, Any]:
        """The one answer to a message, a dict."""
        answered = self.do("call", endpoint, instance, payload)
        assert answered["error"] is None, answered
        (only,) = answered["answers"]
        assert isinstance(only, dict)
        return only
