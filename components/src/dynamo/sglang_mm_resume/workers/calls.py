# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""How the processor calls the workers of one role: every answer is watched while it lasts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from dynamo.sglang_mm_resume import tracing
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import ResumeError
from dynamo.sglang_mm_resume.transport.rpc import (
    Client,
    PeerUnreachable,
    ProbeTotals,
    each_while,
    heartbeat,
    ping,
    within,
)

#: Seconds for answers that need no block: a loaded loop may be slow, a dead peer must not hang us.
CONTROL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of one role, by the clients of their `generate` and of their control messages."""

    role: str
    generate: Client
    control: Client
    settings: Settings
    probes: ProbeTotals = field(default_factory=ProbeTotals)

    async def start(
        self, instance_id: int, request: Any, context: Any = None
    ) -> AsyncIterator[Any]:
        """The stream of one worker's answer; while it is silent, the worker is probed.

        With `context`, what ends that ends the call; without, it is on behalf of the request only.
        Raises `PeerUnreachable` if the worker does not take the request in time, and from the
        stream once it counts as dead. Both may raise what Dynamo's client raises.
        """
        who = f"{self.role} worker"
        context = tracing.carrying(context) if context else tracing.call_context()
        silence = f"{who} {instance_id}: no answer in {CONTROL_TIMEOUT_S:g} s"
        try:
            async with within(CONTROL_TIMEOUT_S, silence):
                stream = await self.generate.direct(
                    request, instance_id, annotated=False, context=context
                )
        except TimeoutError as error:  # Dynamo's own: the worker has not taken the request
            raise PeerUnreachable(f"{who} {instance_id}: {error}") from error
        interval_s = self.settings.heartbeat_interval_s
        failures = self.settings.heartbeat_max_failures
        probe = heartbeat(self.control, instance_id, who, interval_s, failures, self.probes)
        return each_while(stream, interval_s, probe)

    async def answers_ping(self, instance_id: int) -> bool:
        """Whether a worker is alive."""
        interval_s = self.settings.heartbeat_interval_s
        try:
            await ping(self.control, instance_id, interval_s, self.probes)
        except ResumeError:
            return False
        return True
