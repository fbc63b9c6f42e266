# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of Dynamo's planner, without the planner: importing its package imports what
only its own image has (scikit-learn).
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any
from unittest import mock

import dynamo

_NAME = "dynamo.planner"


def _imported(*names: str) -> list[Any]:
    """Modules below `dynamo.planner`, whose own `__init__` is not run."""
    spec = PathFinder.find_spec(_NAME, dynamo.__path__)
    assert spec is not None
    package = ModuleType(_NAME)
    package.__path__ = list(spec.submodule_search_locations or ())
    with mock.patch.dict(sys.modules, {_NAME: package}):
        return [import_module(f"{_NAME}.{name}") for name in names]


_components, _config = _imported("config.backend_components", "config.planner_config")

WORKER_COMPONENT_NAMES = _components.WORKER_COMPONENT_NAMES
PlannerConfig = _config.PlannerConfig
