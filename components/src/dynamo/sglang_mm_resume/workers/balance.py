# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which instance of a worker serves next: the one with the least outstanding work."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.transport.rpc import Client

#: Seconds that a worker which refused is passed over while there are others.
AVOID_S: Final = 1.0


class LeastOutstanding:
    """Counts what this processor has outstanding per instance. One event loop."""

    def __init__(self, client: Client, role: str) -> None:
        self._client = client
        self._role = role
        self._outstanding: Counter[int] = Counter()
        self._avoided_until: dict[int, float] = {}
        self._turn = 0

    @contextmanager
    def borrow(self, wanted: int | None = None) -> Iterator[int]:
        """The id of the instance to use, counted until the block ends. Raises `Refused`."""
        instance_id = self._choose() if wanted is None else wanted
        self._outstanding[instance_id] += 1
        try:
            yield instance_id
        finally:
            self._outstanding[instance_id] -= 1

    def avoid(self, instance_id: int) -> None:
        """It refused for now. Without this it would look idle, and be chosen again at once."""
        self._avoided_until[instance_id] = time.monotonic() + AVOID_S

    def _choose(self) -> int:
        alive = sorted(self._client.instance_ids())
        if not alive:
            raise Refused(Reason.OVERLOADED, f"no {self._role} worker is alive")
        now = time.monotonic()
        instances = [i for i in alive if self._avoided_until.get(i, 0.0) <= now] or alive
        self._turn += 1  # equals take turns, so that an idle graph uses all of its workers
        rotated = instances[self._turn % len(instances) :] + instances
        return min(rotated[: len(instances)], key=lambda i: self._outstanding[i])
