# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the processor's flags tell the frontend, by the card that lists the model."""

from __future__ import annotations

import json
from typing import Any

from dynamo.sglang_mm_resume.workers.start_processor import (
    ProcessorConfig,
    _runtime_config,
    build_parser,
)


def test_parsers_and_length() -> None:
    card = _card(
        *("--dyn-tool-call-parser", "hermes"),
        *("--dyn-reasoning-parser", "granite"),
        *("--context-length", "512"),
    )
    assert (card.tool_call_parser, card.reasoning_parser) == ("hermes", "granite")
    assert card.context_length == 512


def test_thinking_mode() -> None:
    assert json.loads(_thinking_mode("--dyn-default-thinking-mode", "enabled")) == "enabled"
    assert _thinking_mode() is None


def test_tools_stay_in_the_prompt_where_none_may_be_called() -> None:
    assert _card().exclude_tools_when_tool_choice_none
    kept = _card("--no-exclude-tools-when-tool-choice-none")
    assert not kept.exclude_tools_when_tool_choice_none


def test_structural_tags() -> None:
    strict = _card("--dyn-structural-tag", '{"scope": "always", "schema": "strict"}')
    assert [card.structural_tag["schema"] for card in (_card(), strict)] == ["auto", "strict"]


def _thinking_mode(*flags: str) -> Any:
    return _card(*flags).runtime_data.get("default_thinking_mode")


def _card(*flags: str) -> Any:
    config = ProcessorConfig.from_cli_args(build_parser().parse_args(["--model-path", "x", *flags]))
    config.validate()
    return _runtime_config(config)
