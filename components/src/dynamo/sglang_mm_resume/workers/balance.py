# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Which instance of a worker serves next: the one with the least outstanding work."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.core.errors import Reason, Refused
from dynamo.sglang_mm_resume.transport.rpc import Client
from dynamo.sglang_mm_resume.transport.tasks import Background

logger = logging.getLogger(__name__)

#: Seconds that a worker which refused is passed over while there are others.
AVOID_S: Final = 1.0
#: Seconds between two looks at discovery while somebody waits for an instance to come or to leave.
LOOK_INTERVAL_S: Final = 1.0
#: Seconds between two probes of a worker that is suspected to be dead.
PROBE_INTERVAL_S: Final = 1.0

#: Whether an instance answers; bounded in time, never raises.
Probe = Callable[[int], Awaitable[bool]]


class NoneAlive(Refused):
    """There is no worker of the wanted role, or none that was not tried already."""

    def __init__(self, role: str) -> None:
        super().__init__(Reason.OVERLOADED, f"no {role} worker is alive")


@dataclass(slots=True, eq=False)
class _Waiter:
    chosen: "asyncio.Future[int]"
    without: Collection[int]
    favourite: int | None


class LeastOutstanding:
    """Counts what this processor has outstanding per instance. One event loop."""

    def __init__(
        self, client: Client, role: str, limit: int, patience_s: float, probe: Probe
    ) -> None:
        """`limit`: pieces of work per instance; what is beyond waits, `patience_s` at most."""
        self._client = client
        self._role = role
        self._limit = limit
        self._patience_s = patience_s
        self._probe = probe
        self._suspects: set[int] = set()
        self._draining: set[int] = set()
        self._background = Background()
        self._is_looking = False
        self._outstanding: Counter[int] = Counter()
        self._waiting: deque[_Waiter] = deque()
        self._avoided_until: dict[int, float] = {}
        self._turn = 0

    @asynccontextmanager
    async def borrow(
        self,
        wanted: int | None = None,
        without: Collection[int] = (),
        favourite: int | None = None,
    ) -> AsyncIterator[int]:
        """The id of the instance to use, counted until the block ends.

        `wanted` leaves no choice, `without` are not chosen, a `favourite` is where it has room.
        Raises `NoneAlive`, or `Refused` if none of them has room in time; who came first gets room
        first.
        """
        if wanted is None:
            instance_id = await self._wait_for_room(without, favourite)
        else:
            instance_id = wanted
            self._outstanding[instance_id] += 1
        try:
            yield instance_id
        finally:
            self._give_back(instance_id)

    def require_room(self) -> None:
        """Raises `Refused` if all instances have their fill: more would only wait."""
        alive = self._alive(())
        if alive and self.num_outstanding >= self._limit * len(alive):
            raise self._full()

    def avoid(self, instance_id: int) -> None:
        """It refused for now. Without this it would look idle, and be chosen again at once."""
        now = time.monotonic()
        self._avoided_until = {i: t for i, t in self._avoided_until.items() if t > now}
        self._avoided_until[instance_id] = now + AVOID_S

    def suspect(self, instance_id: int) -> None:
        """It did not answer. Not chosen again before it answers a probe: what is dead leaves
        discovery only seconds later, and every piece of work sent there would be lost.
        """
        if instance_id not in self._suspects:
            logger.warning("%s worker %s is suspected to be dead", self._role, instance_id)
            self._suspects.add(instance_id)
            with tracing.within(None):  # other requests wait for it too
                self._background.start(self._clear(instance_id))

    def drains(self, instance_id: int) -> None:
        """It shuts down and refuses all work: not chosen again before it has left discovery. It
        stays listed for as long as its streams last, and empties meanwhile, so that it would win
        every choice.
        """
        if instance_id not in self._draining:
            logger.info("%s worker %s shuts down: it gets no more work", self._role, instance_id)
            self._draining.add(instance_id)
            self._look_at_discovery()

    async def close(self) -> None:
        """End the probing."""
        await self._background.cancel()

    def has_other(self, tried: Collection[int]) -> bool:
        """Whether there is an instance beside those that were tried."""
        return bool(self._alive(tried))

    @property
    def num_outstanding(self) -> int:
        """Pieces of work lent out, and those that wait for an instance."""
        return self._outstanding.total() + self.num_waiting

    @property
    def num_waiting(self) -> int:
        """Pieces of work that wait for an instance."""
        return len(self._waiting)

    async def _wait_for_room(self, without: Collection[int], favourite: int | None) -> int:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), without, favourite)
        self._waiting.append(waiter)
        self._serve()
        if not waiter.chosen.done():
            self._look_at_discovery()
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(waiter.chosen)
        except TimeoutError:
            self._leave(waiter)
            raise self._full() from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    async def _clear(self, instance_id: int) -> None:
        while instance_id in self._client.instance_ids():
            if await self._probe(instance_id):
                logger.info("%s worker %s answers again", self._role, instance_id)
                break
            await asyncio.sleep(PROBE_INTERVAL_S)
        self._suspects.discard(instance_id)
        self._serve()

    def _look_at_discovery(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            with tracing.within(None):  # for whoever waits
                self._background.start(self._look())

    async def _look(self) -> None:
        """Dynamo's client tells nobody when an instance comes or leaves: look, while it matters."""
        try:
            while self._draining or self._waiting:
                await asyncio.sleep(LOOK_INTERVAL_S)
                self._draining.intersection_update(self._client.instance_ids())
                self._serve()
        finally:
            self._is_looking = False

    def _alive(self, without: Collection[int]) -> list[int]:
        unfit = self._suspects | self._draining | set(without)
        return sorted(set(self._client.instance_ids()) - unfit)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif waiter.chosen.exception() is None:
            self._give_back(waiter.chosen.result())  # given in this very moment

    def _give_back(self, instance_id: int) -> None:
        self._outstanding[instance_id] -= 1
        if not self._outstanding[instance_id]:
            del self._outstanding[instance_id]  # instances come and go
        self._serve()

    def _serve(self) -> None:
        """Give what room there is to those who wait, in the order in which they came."""
        for waiter in list(self._waiting):
            try:
                chosen = self._choose(waiter.without, waiter.favourite)
            except NoneAlive as error:
                self._waiting.remove(waiter)
                waiter.chosen.set_exception(error)
                continue
            if chosen is None and not waiter.without:
                return  # no room at all
            if chosen is not None:
                self._waiting.remove(waiter)
                self._outstanding[chosen] += 1
                waiter.chosen.set_result(chosen)

    def _choose(self, without: Collection[int], favourite: int | None) -> int | None:
        """The favourite, or the instance with the least work; `None` if all have their fill."""
        alive = self._alive(without)
        if not alive:
            raise NoneAlive(self._role)
        with_room = [i for i in alive if self._outstanding[i] < self._limit]
        now = time.monotonic()
        instances = [i for i in with_room if self._avoided_until.get(i, 0.0) <= now] or with_room
        if not instances:
            return None
        if favourite in instances:
            return favourite
        self._turn += 1  # equals take turns, so that an idle graph uses all of its workers
        rotated = instances[self._turn % len(instances) :] + instances
        return min(rotated[: len(instances)], key=lambda i: self._outstanding[i])

    def _full(self) -> Refused:
        return Refused(
            Reason.OVERLOADED,
            f"every {self._role} worker has its {self._limit} pieces of work: try again later",
        )
