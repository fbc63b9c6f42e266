# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The names of NIXL that `transport/nixl_agent.py` uses, with the parameters that it passes."""

import ast
import inspect
from pathlib import Path

import nixl
import pytest

from dynamo.sglang_mm_resume.transport import nixl_agent as module

#: Method of `nixl_agent`, and the values it is called with, as names.
METHODS = {
    "register_memory": ["reg_list"],
    "prep_xfer_dlist": ["agent_name", "xfer_list", "mem_type"],
    "get_agent_metadata": [],
    "add_remote_agent": ["metadata"],
    "remove_remote_agent": ["agent"],
    "send_notif": ["remote_agent_name", "notif_msg"],
    "make_prepped_xfer": [
        "operation",
        "local_xfer_side",
        "local_indices",
        "remote_xfer_side",
        "remote_indices",
        "notif_msg",
    ],
    "transfer": ["handle"],
    "check_xfer_state": ["handle"],
    "get_new_notifs": [],
    "deregister_memory": ["dereg_list"],
}


@pytest.mark.parametrize(("name", "parameters"), METHODS.items())
def test_a_method_takes_what_it_is_given(name: str, parameters: list[str]) -> None:
    signature = inspect.signature(getattr(nixl.nixl_agent, name))
    _, *found = signature.parameters.values()  # without self
    assert [p.name for p in found[: len(parameters)]] == parameters
    assert all(p.default is not p.empty for p in found[len(parameters) :]), "a new duty"


def test_an_agent_is_made_with_a_name_and_a_config() -> None:
    inspect.signature(nixl.nixl_agent).bind("name", nixl.nixl_agent_config)
    inspect.signature(nixl.nixl_agent_config).bind(enable_prog_thread=False)


@pytest.mark.parametrize("handle", ["nixl_xfer_handle", "nixl_prepped_dlist_handle"])
def test_handles_can_be_released(handle: str) -> None:
    _, *parameters = inspect.signature(getattr(nixl, handle).release).parameters.values()
    assert parameters == []


def test_the_list_above_is_what_the_module_calls() -> None:
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    called = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "_agent"
    }
    assert called == set(METHODS)
