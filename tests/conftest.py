# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of the whole deployment are marked: `pytest -m "not integration"` runs the fast ones."""

from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"

# A start of the deployment alone takes a minute or two where others use the machine as well.
INTEGRATION_TIMEOUT_S = 480


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "integration: starts processes of the real deployment")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts processes, and put tests of one deployment next to each other."""
    for item in items:
        if item.path.is_relative_to(INTEGRATION):
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(INTEGRATION_TIMEOUT_S))
    items.sort(key=_deployment_of)  # stable: the order is otherwise left as it is


def _deployment_of(item: pytest.Item) -> str:
    deployment = getattr(getattr(item, "module", None), "DEPLOYMENT", None)
    return "" if deployment is None else deployment.name
