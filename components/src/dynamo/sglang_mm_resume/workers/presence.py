# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Keeps a worker listed in Dynamo's discovery.

A process that stands still for longer than its lease (stopped, swapped out, its machine paused) is
taken off the list by others. Dynamo's keep-alive goes on afterwards, but for entries that are gone:
without this, a worker that is well again is never asked again.

In Kubernetes there are no leases: entries stay, and are listed while the pod is ready. A pod that
is not, because it starts or shuts down, has lost nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from dynamo.sglang_mm_resume.workers.lifecycle import WorkerLost

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
#: Looks in a row that must miss an entry: a watch that is slow once is none that was lost.
LOOKS: Final = 2
#: Looks within which an entry that was registered again must appear.
LOOKS_FOR_RETURN: Final = 4
ATTEMPTS: Final = 4
#: A look that is so much too late: the process stood still, for longer than an entry may safely go
#: without Dynamo's keep-alive.
STOOD_STILL_S: Final = 5.0
#: Discovery backends whose entries last as long as their owner.
_WITHOUT_LEASES: Final = frozenset({"kubernetes"})


@dataclass(slots=True)
class PresenceTotals:
    """Counters since the start, for /metrics."""

    reregistrations: int = 0


class Listing:
    """An endpoint's entry in discovery. It stands for the endpoint wherever Dynamo takes the entry
    away on purpose, in a shutdown or while an engine is paused: what is meant to be away stays so.
    """

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._client: Any = None
        self._wanted = True
        self._changing = asyncio.Lock()

    async def register_endpoint_instance(self) -> None:
        """The name that Dynamo calls."""
        self._wanted = True
        await self.restore()

    async def unregister_endpoint_instance(self) -> None:
        """The name that Dynamo calls."""
        self._wanted = False
        async with self._changing:
            await self._endpoint.unregister_endpoint_instance()

    async def restore(self) -> None:
        """Register again, unless it is meant to be away. Harmless if it is there."""
        async with self._changing:
            if self._wanted:
                await self._endpoint.register_endpoint_instance()

    async def watch(self) -> None:
        """See what others see from now on, also while discovery is away. May raise Exception."""
        self._client = await self._endpoint.client()

    def is_lost(self) -> bool:
        """Whether others do not see what they are meant to see."""
        listed = self._endpoint.connection_id() in self._client.instance_ids()
        return self._wanted and not listed


class Presence:
    """The entries of one worker: an instance of each endpoint, and its model card.

    `backend` is the name of Dynamo's discovery backend.
    """

    def __init__(self, *endpoints: Any, backend: str, look_every_s: float = LOOK_EVERY_S) -> None:
        self.listings = [Listing(endpoint) for endpoint in endpoints]
        self.totals = PresenceTotals()
        self._has_leases = backend not in _WITHOUT_LEASES
        self._look_every_s = look_every_s
        self._looked_at = 0.0  # by the clock that leases go by, which a suspended machine moves on

    async def keep(
        self, register: Callable[[], Awaitable[None]], list_model: Callable[[], Awaitable[None]]
    ) -> None:
        """`register`; after that, put back what gets lost, until cancelled.

        `list_model` registers the model card alone; one that is there stays as it is. Cards cannot
        be looked up from here, and may get lost alone when a worker goes on at the moment at which
        others remove its entries: all are registered again after the process has stood still.
        Raises what these two raise, and WorkerLost if registering has no effect.
        """
        await register()
        if not self._has_leases:
            return
        for listing in self.listings:
            await listing.watch()
        self._looked_at = time.time()
        while True:
            await self._until_lost()
            await self._return()
            await list_model()
            self.totals.reregistrations += 1
            logger.warning("this worker stood still, or discovery had lost it: registered again")

    def counted(self, status: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        """A worker's status, with these totals among its own."""

        def with_totals() -> dict[str, Any]:
            state = status()
            return {**state, "totals": {**state.get("totals", {}), **asdict(self.totals)}}

        return with_totals

    async def _return(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                for listing in self.listings:
                    await listing.restore()
            except Exception as error:  # Dynamo raises nothing more specific
                logger.error("not registered in discovery: %s", error)
            for _ in range(LOOKS_FOR_RETURN):
                if not await self._look():
                    return
        raise WorkerLost(f"discovery does not list this worker after {ATTEMPTS} attempts")

    async def _until_lost(self) -> None:
        """Return once some looks in a row have missed an entry, or one came far too late."""
        missed = 0
        while missed < LOOKS:
            before = self._looked_at
            missed = missed + 1 if await self._look() else 0
            if self._looked_at - before > self._look_every_s + STOOD_STILL_S:
                return

    async def _look(self) -> bool:
        """Whether an entry is lost, when it is time to look again."""
        await asyncio.sleep(self._look_every_s)
        self._looked_at = time.time()
        return any(listing.is_lost() for listing in self.listings)
