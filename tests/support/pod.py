# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.support.pod --pod-module MODULE FLAG…`: MODULE with the environment that the
operator of Dynamo gives to the container of a pod.
"""

from __future__ import annotations

import os
import runpy
import sys

from tests.support.kubernetes_api import CONTAINER, NAMESPACE

FRONTEND = "frontend"
GRAPH = f"{NAMESPACE}-graph"
SUFFIX = "0a1b2c3d"


def pod_name(url: str) -> str:
    """The pod of a worker, by the URL of its system port."""
    return f"pod-{url.rpartition(':')[2]}"


def environment(system_port: str | None) -> dict[str, str]:
    """A worker's, or the frontend's, which has no system port."""
    name = FRONTEND if system_port is None else pod_name(f":{system_port}")
    common = {
        "DYN_DISCOVERY_BACKEND": "kubernetes",
        "DYN_KUBE_DISCOVERY_MODE": os.environ.get("DYN_KUBE_DISCOVERY_MODE", "container"),
        "CONTAINER_NAME": CONTAINER,
        "DYN_NAMESPACE": GRAPH,
        "POD_NAME": name,
        "POD_NAMESPACE": NAMESPACE,
        "POD_UID": f"uid-of-{name}",
    }
    if system_port is None:
        return {**common, "DYN_NAMESPACE_PREFIX": GRAPH}
    return {
        **common,
        "DYN_NAMESPACE_WORKER_SUFFIX": SUFFIX,
        "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS": '["generate"]',
        "DYN_HEALTH_CHECK_ENABLED": "false",
    }


# SGLang's processes import this module again: it must do nothing for them.
if __name__ == "__main__":
    at = sys.argv.index("--pod-module")
    module = sys.argv[at + 1]
    del sys.argv[at : at + 2]
    os.environ.update(environment(os.environ.get("DYN_SYSTEM_PORT")))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
