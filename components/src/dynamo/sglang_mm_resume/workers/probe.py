# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a worker that says nothing is busy or dead."""

import logging
from collections.abc import Awaitable, Callable

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import ResumeError
from dynamo.sglang_mm_resume.core.messages import PREFILL_REPLY, Ping
from dynamo.sglang_mm_resume.transport.rpc import Client, PeerUnreachable, ask

logger = logging.getLogger(__name__)


def prober(
    client: Client, instance_id: int, role: str, settings: Settings
) -> Callable[[], Awaitable[None]]:
    """Asks a silent worker whether it is alive; raises when it failed too often in a row."""
    failures = 0

    async def probe() -> None:
        nonlocal failures
        try:
            await ask(client, instance_id, Ping(), PREFILL_REPLY, settings.heartbeat_interval_s)
            failures = 0
        except ResumeError as error:
            failures += 1
            logger.warning("%s worker %s failed a probe: %s", role, instance_id, error)
            if failures >= settings.heartbeat_max_failures:
                raise PeerUnreachable(f"{role} worker {instance_id} is dead: {error}") from error

    return probe
