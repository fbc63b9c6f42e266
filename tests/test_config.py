# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, units, ranges and contradictions."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from dynamo.sglang_mm_resume.config import Settings, spec_of

# As the design has them; a changed default changes what an unconfigured deployment does.
DEFAULTS = {
    "use_block_allocator": True,
    "block_size": 128,
    "default_blocks": 8,
    "adaptive_default": False,
    "pool_buffers": 64,
    "slot_tokens": None,
    "thread_pool_size": 12,
    "queue_size": 4,
    "bootstrap_timeout_s": 30.0,
    "heartbeat_interval_s": 5.0,
    "heartbeat_max_failures": 2,
    "pool_device": "auto",
    "encode_fallback": "fail",
    "router_mode": "least-outstanding",
    "encode_min_tokens": None,
    "encode_min_items": None,
    "local_vision": True,
    "encode_batch": None,
    "max_requests": 512,
    "shutdown_grace_s": 30.0,
    "max_assembled_mib": 2048,
    "max_waiting_transfers": 256,
    "max_encodes": 64,
    "max_media_items": 64,
    "chunk_blocks": 16,
    "embedding_cache": True,
    "checksum": False,
    "drain_s": 1.0,
    "max_quarantined_fraction": 0.5,
}
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]
DURATIONS_AND_FRACTIONS = [name for name in NUMBERS if type(DEFAULTS[name]) is float]


def message(**values: object) -> str:
    """What the refusal of `values` says."""
    with pytest.raises(ValidationError) as caught:
        Settings(**values)  # type: ignore[arg-type]
    (error,) = caught.value.errors()
    return error["msg"]


def test_defaults() -> None:
    assert Settings().model_dump() == DEFAULTS


def test_derived_sizes() -> None:
    assert (Settings().pool_blocks, Settings().default_tokens) == (512, 1024)
    settings = Settings(block_size=64, default_blocks=3, pool_buffers=5)
    assert (settings.pool_blocks, settings.default_tokens) == (15, 192)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().block_size = 64


def test_unknown_setting_is_refused() -> None:
    assert message(blocksize=4) == "Extra inputs are not permitted"


@pytest.mark.parametrize(("name", "value"), [("block_size", "8"), ("block_size", True)])
def test_wrong_type_is_refused(name: str, value: object) -> None:
    assert "integer" in message(**{name: value})


@pytest.mark.parametrize(
    "name", [*NUMBERS, "slot_tokens", "encode_batch", "encode_min_tokens", "encode_min_items"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_are_positive(name: str, value: int) -> None:
    spec = spec_of(name)
    number = float(value) if name in DURATIONS_AND_FRACTIONS else value
    said = message(**{"use_block_allocator": False, name: number})
    assert said.startswith(f"{spec.flag} ({spec.env}): {number} is not a positive ")
    assert said.endswith(spec.unit)


@pytest.mark.parametrize("name", DURATIONS_AND_FRACTIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_are_finite(name: str, value: float) -> None:
    assert spec_of(name).label in message(**{name: value})


@pytest.mark.parametrize(
    ("name", "largest", "above"),
    [
        ("block_size", 65536, 65537),
        ("chunk_blocks", 16, 17),
        ("max_quarantined_fraction", 1.0, 1.1),
    ],
)
def test_upper_limits(name: str, largest: float, above: float) -> None:
    assert getattr(Settings(**{name: largest}), name) == largest  # type: ignore[arg-type]
    said = message(**{name: above})
    assert f"{spec_of(name).label}: {above} is above {spec_of(name).maximum}" in said


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_pool_devices(device: str) -> None:
    assert Settings(pool_device=device).pool_device == device


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cpu:0", "{device}"])
def test_unknown_pool_device_is_refused(device: str) -> None:
    said = message(pool_device=device)
    assert said.startswith(f"{spec_of('pool_device').label}: {device!r} is not auto, cpu")


def test_slot_size_is_for_fixed_slots_only() -> None:
    assert Settings(use_block_allocator=False, slot_tokens=4096).slot_tokens == 4096
    said = message(slot_tokens=4096)
    assert said.startswith(spec_of("slot_tokens").label)
    assert spec_of("use_block_allocator").label in said


def test_only_grants_of_blocks_adapt() -> None:
    assert Settings(adaptive_default=True).adaptive_default
    said = message(adaptive_default=True, use_block_allocator=False)
    assert said.startswith(spec_of("adaptive_default").label)
    assert spec_of("use_block_allocator").label in said


def test_spellings_are_unique_and_described() -> None:
    specs = [spec_of(name) for name in Settings.model_fields]
    assert len({spec.flag for spec in specs}) == len({spec.env for spec in specs}) == len(specs)
    assert all(spec.unit and spec.text.endswith(".") for spec in specs)


def test_spec_of_an_unknown_name() -> None:
    with pytest.raises(KeyError):
        spec_of("blocksize")


@pytest.mark.parametrize("policy", ["fail", "local"])
def test_what_to_do_without_an_encode_worker(policy: str) -> None:
    assert Settings(encode_fallback=policy).encode_fallback == policy


@pytest.mark.parametrize("policy", ["", "none", "Local", "local "])
def test_another_policy_is_refused(policy: str) -> None:
    said = message(encode_fallback=policy)
    assert said.startswith(f"{spec_of('encode_fallback').label}: {policy!r} is not fail or local")


@pytest.mark.parametrize(
    "policy", [{"encode_min_tokens": 1}, {"encode_min_items": 1}, {"encode_fallback": "local"}]
)
def test_an_engine_without_a_tower_encodes_nothing(policy: dict[str, Any]) -> None:
    assert not Settings(local_vision=False).engine_encodes
    said = message(local_vision=False, **policy)
    assert said.startswith(spec_of("local_vision").label)
    assert spec_of(*policy).label in said


def test_every_limit_is_a_metric() -> None:
    limits = Settings(max_requests=3, max_encodes=4).limits
    assert limits["max_requests"] == 3
    assert limits["max_encodes"] == 4
    assert set(limits) == {name for name in Settings.model_fields if name.startswith("max_")}
