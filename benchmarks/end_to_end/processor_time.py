# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What a request costs each role: where machines are small, this is what limits throughput."""

from collections import defaultdict
from collections.abc import Mapping

import psutil

from examples.local_stack import LocalStack


def processor_seconds(stack: LocalStack) -> Mapping[str, float]:
    """User and system time since the start, by role; an engine's own processes are its worker's."""
    spent: defaultdict[str, float] = defaultdict(float)
    for process in stack.processes:
        role = process.name.partition("-")[0]
        main = psutil.Process(process.pid)
        for each in (main, *main.children(recursive=True)):
            times = each.cpu_times()
            spent[role] += times.user + times.system
    return spent
