# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which instance of a worker serves next: the one with the least outstanding work."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.transport.rpc import Client


class LeastOutstanding:
    """Counts what this processor has outstanding per instance. One event loop."""

    def __init__(self, client: Client, role: str) -> None:
        self._client = client
        self._role = role
        self._outstanding: Counter[int] = Counter()
        self._turn = 0

    @contextmanager
    def borrow(self) -> Iterator[int]:
        """The id of the instance to use, counted until the block ends. Raises `Refused`."""
        instance_id = self._choose()
        self._outstanding[instance_id] += 1
        try:
            yield instance_id
        finally:
            self._outstanding[instance_id] -= 1

    def _choose(self) -> int:
        instances = sorted(self._client.instance_ids())
        if not instances:
            raise Refused(Reason.OVERLOADED, f"no {self._role} worker is alive")
        self._turn += 1  # equals take turns, so that an idle graph uses all of its workers
        rotated = instances[self._turn % len(instances) :] + instances
        return min(rotated[: len(instances)], key=lambda i: self._outstanding[i])
