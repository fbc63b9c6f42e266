# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang's NIXL agent rests between its looks at the network.

Its progress thread has a delay of 0, and so a core of its own, idle or not. A prefill and a decode
engine on a machine of two cores leave nothing to anybody else then, for many seconds at a time.
"""

from typing import Any, Final

#: Microseconds. With it an idle agent took 2.6 % of a core, and a message arrived within 0.1 ms.
PERIOD_US: Final = 1000


def rest_between_polls(*args: Any, **named: Any) -> None:
    """From now on, for the agents of this process.

    A hook before the constructor of SGLang's KV manager; returning None leaves its arguments alone.
    """
    from nixl import _api as nixl

    original = nixl.nixlBind.nixlAgentConfig

    class Config(original):  # type: ignore[misc, valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, PERIOD_US if name == "pthrDelay" else value)

    nixl.nixlBind.nixlAgentConfig = Config
