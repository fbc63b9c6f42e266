# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Flags and environment variables: every setting, by both ways, and every kind of refusal."""

import argparse
import logging
from typing import Any

import pytest

from dynamo.sglang_mm_resume import args
from dynamo.sglang_mm_resume.args import DEFAULT_TOKENS, build_parser, parse_settings, print_help
from dynamo.sglang_mm_resume.config import Settings, spec_of

# setting: (flag, environment name, a value that is not the default, the same as text)
SPELLINGS: dict[str, tuple[str, str, Any, str]] = {
    "block_size": ("--multimodal-block-size", "SGLANG_MULTIMODAL_BLOCK_SIZE", 64, "64"),
    "default_blocks": (
        "--default-multimodal-blocks",
        "SGLANG_DEFAULT_MULTIMODAL_BLOCKS",
        4,
        "4",
    ),
    "pool_buffers": (
        "--embedding-cache-buffer-size",
        "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE",
        32,
        "32",
    ),
    "thread_pool_size": (
        "--disaggregation-thread-pool-size",
        "SGLANG_DISAGGREGATION_THREAD_POOL_SIZE",
        3,
        "3",
    ),
    "queue_size": ("--disaggregation-queue-size", "SGLANG_DISAGGREGATION_QUEUE_SIZE", 9, "9"),
    "bootstrap_timeout_s": (
        "--mm-bootstrap-timeout",
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT",
        12.0,
        "12",
    ),
    "heartbeat_interval_s": (
        "--mm-heartbeat-interval",
        "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL",
        0.5,
        "0.5",
    ),
    "heartbeat_max_failures": (
        "--mm-heartbeat-max-failures",
        "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE",
        7,
        "7",
    ),
    "pool_device": (
        "--mm-resume-pool-device",
        "DYN_SGL_MM_RESUME_POOL_DEVICE",
        "cuda:1",
        "cuda:1",
    ),
    "max_assembled_mib": (
        "--mm-resume-max-assembled-mib",
        "DYN_SGL_MM_RESUME_MAX_ASSEMBLED_MIB",
        100,
        "100",
    ),
    "max_waiting_transfers": (
        "--mm-resume-max-waiting-transfers",
        "DYN_SGL_MM_RESUME_MAX_WAITING_TRANSFERS",
        10,
        "10",
    ),
    "max_encodes": ("--mm-resume-max-encodes", "DYN_SGL_MM_RESUME_MAX_ENCODES", 5, "5"),
    "max_requests": ("--mm-resume-max-requests", "DYN_SGL_MM_RESUME_MAX_REQUESTS", 7, "7"),
    "encode_fallback": (
        "--encode-fallback",
        "DYN_SGL_MM_RESUME_ENCODE_FALLBACK",
        "local",
        "local",
    ),
    "router_mode": ("--router-mode", "DYN_SGL_MM_RESUME_ROUTER_MODE", "kv", "kv"),
    "encode_min_tokens": ("--encode-min-tokens", "DYN_SGL_MM_RESUME_ENCODE_MIN_TOKENS", 9, "9"),
    "encode_min_items": ("--encode-min-items", "DYN_SGL_MM_RESUME_ENCODE_MIN_ITEMS", 3, "3"),
    "shutdown_grace_s": (
        "--mm-resume-shutdown-grace-s",
        "DYN_SGL_MM_RESUME_SHUTDOWN_GRACE_S",
        3.5,
        "3.5",
    ),
    "max_media_items": (
        "--mm-resume-max-media-items",
        "DYN_SGL_MM_RESUME_MAX_MEDIA_ITEMS",
        6,
        "6",
    ),
    "encode_batch": ("--mm-resume-encode-batch", "DYN_SGL_MM_RESUME_ENCODE_BATCH", 5, "5"),
    "chunk_blocks": ("--mm-resume-chunk-blocks", "DYN_SGL_MM_RESUME_CHUNK_BLOCKS", 2, "2"),
    "drain_s": ("--mm-resume-drain-s", "DYN_SGL_MM_RESUME_DRAIN_S", 2.5, "2.5"),
    "max_quarantined_fraction": (
        "--mm-resume-max-quarantined-fraction",
        "DYN_SGL_MM_RESUME_MAX_QUARANTINED_FRACTION",
        0.25,
        "0.25",
    ),
}
# Settings that are on or off: (flag, environment name)
SWITCHES: dict[str, tuple[str, str]] = {
    "use_block_allocator": ("--use-block-allocator", "SGLANG_USE_BLOCK_ALLOCATOR"),
    "adaptive_default": ("--adaptive-default", "DYN_SGL_MM_RESUME_ADAPTIVE_DEFAULT"),
    "embedding_cache": ("--mm-resume-embedding-cache", "DYN_SGL_MM_RESUME_EMBEDDING_CACHE"),
    "local_vision": ("--local-vision", "DYN_SGL_MM_RESUME_LOCAL_VISION"),
    "checksum": ("--mm-resume-checksum", "DYN_SGL_MM_RESUME_CHECKSUM"),
}
every_switch = pytest.mark.parametrize(
    ("name", "flag", "env"), [(name, *spelling) for name, spelling in SWITCHES.items()]
)
EVERY_SETTING = [(name, *spelling) for name, spelling in SPELLINGS.items()]
TOKENS_FLAG, TOKENS_ENV = DEFAULT_TOKENS.flag, DEFAULT_TOKENS.env


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(spec_of(field).env for field in Settings.model_fields), TOKENS_ENV]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(args.BOOTSTRAP_ADDR_ENV, raising=False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Parse, expect a refusal, and return the one line that it prints."""

    def refuse(*argv: str) -> str:
        with pytest.raises(SystemExit) as caught, args.exit_on_bad_argument():
            parse_settings(argv)
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err.removeprefix("error: ").rstrip("\n")

    return refuse


def settings(*argv: str) -> Settings:
    found, rest = parse_settings(argv)
    assert rest == []
    return found


def test_nothing_given() -> None:
    assert settings() == Settings()


def test_the_tables_here_cover_every_setting() -> None:
    assert set(SPELLINGS) | set(SWITCHES) | {"slot_tokens"} == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "flag", "env", "value", "text"), EVERY_SETTING)
def test_by_flag(name: str, flag: str, env: str, value: Any, text: str) -> None:
    assert settings(flag, text) == settings(f"{flag}={text}") == Settings(**{name: value})


@pytest.mark.parametrize(("name", "flag", "env", "value", "text"), EVERY_SETTING)
def test_by_environment(
    name: str, flag: str, env: str, value: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(env, text)
    assert settings() == Settings(**{name: value})


@pytest.mark.parametrize(("name", "flag", "env", "value", "text"), EVERY_SETTING)
def test_flag_wins_over_a_broken_environment(
    name: str, flag: str, env: str, value: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(env, "broken")
    assert settings(flag, text) == Settings(**{name: value})


@pytest.mark.parametrize(("name", "flag", "env", "value", "text"), EVERY_SETTING)
@pytest.mark.parametrize("bad", ["", "many", "-1", "0"])
def test_illegal_values_name_flag_and_environment(
    name: str,
    flag: str,
    env: str,
    value: Any,
    text: str,
    bad: str,
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_flag = refused(f"{flag}={bad}")
    assert by_flag.startswith(f"{flag} ({env}): ")
    monkeypatch.setenv(env, bad)
    assert refused() == by_flag


def test_the_line_of_a_refusal(refused: Any) -> None:
    assert refused("--multimodal-block-size", "0") == (
        "--multimodal-block-size (SGLANG_MULTIMODAL_BLOCK_SIZE): "
        "0 is not a positive number of tokens"
    )
    assert refused("--multimodal-block-size", "1.5") == (
        "--multimodal-block-size (SGLANG_MULTIMODAL_BLOCK_SIZE): "
        "'1.5' is not a whole number of tokens"
    )
    assert refused("--multimodal-block-size") == (
        "--multimodal-block-size (SGLANG_MULTIMODAL_BLOCK_SIZE): expected one argument"
    )


@every_switch
@pytest.mark.parametrize("word", ["false", "False", "0", "no", "off"])
def test_a_switch_off_by_environment(
    name: str, flag: str, env: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(env, word)
    assert getattr(settings(), name) is False
    assert getattr(settings(flag), name) is True


@every_switch
@pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on"])
def test_a_switch_on_by_environment(
    name: str, flag: str, env: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(env, word)
    assert getattr(settings(), name) is True
    assert getattr(settings(flag.replace("--", "--no-", 1)), name) is False


@every_switch
@pytest.mark.parametrize("word", ["", "maybe", "2"])
def test_a_switch_neither_on_nor_off(
    name: str, flag: str, env: str, word: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(env, word)
    said = refused()
    assert said.startswith(f"{flag} ({env}): ")
    assert said.endswith("is neither true nor false")


@every_switch
def test_a_switch_takes_no_value(name: str, flag: str, env: str, refused: Any) -> None:
    assert refused(f"{flag.replace('--', '--no-', 1)}=yes").startswith(f"{flag} ({env}): ")


def test_fixed_slots(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Settings(use_block_allocator=False, slot_tokens=4096)
    assert settings("--no-use-block-allocator", "--mm-resume-slot-tokens", "4096") == wanted
    monkeypatch.setenv("DYN_SGL_MM_RESUME_SLOT_TOKENS", "4096")
    assert settings("--no-use-block-allocator") == wanted
    assert "--use-block-allocator (SGLANG_USE_BLOCK_ALLOCATOR)" in refused()


def test_default_grant_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(TOKENS_FLAG, "2048").default_blocks == 16
    assert settings(TOKENS_FLAG, "2048", "--multimodal-block-size", "64").default_blocks == 32
    assert settings(TOKENS_FLAG, "2048", "--default-multimodal-blocks", "16").default_blocks == 16
    monkeypatch.setenv(TOKENS_ENV, "512")
    assert settings().default_blocks == 4


def test_default_grant_that_is_no_whole_number_of_blocks(refused: Any) -> None:
    said = refused(TOKENS_FLAG, "1000")
    assert said.startswith(f"{DEFAULT_TOKENS.label}: 1000 is not a multiple of 128")
    assert spec_of("block_size").label in said


@pytest.mark.parametrize("blocks", ["8", "15", "0"])
def test_default_grant_in_tokens_contradicts_blocks(
    blocks: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_DEFAULT_MULTIMODAL_BLOCKS", blocks)
    said = refused(TOKENS_FLAG, "2048")
    assert said.startswith(f"{DEFAULT_TOKENS.label}: 2048 tokens contradict")
    assert spec_of("default_blocks").label in said


@pytest.mark.parametrize("tokens", ["", "many", "0", "-128"])
def test_default_grant_in_illegal_tokens(
    tokens: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKENS_ENV, tokens)
    assert refused().startswith(f"{DEFAULT_TOKENS.label}: ")


def test_illegal_block_size_is_named_before_the_tokens(refused: Any) -> None:
    said = refused(TOKENS_FLAG, "1024", "--multimodal-block-size", "0")
    assert said.startswith(spec_of("block_size").label)


def test_other_arguments_are_passed_on_in_order() -> None:
    others = ["--model-path", "m", "--tp=2", "--multimodal-block", "3", "-v", "--", "x"]
    found, rest = parse_settings(["--model-path", "m", "--multimodal-block-size", "4", *others[2:]])
    assert (found.block_size, rest) == (4, others)


def test_help_has_flag_environment_unit_and_default() -> None:
    entries = build_parser().format_help().split("\n  --")
    assert len(entries) - 1 == len(Settings.model_fields) + 1
    by_flag = {"--" + entry.split()[0].rstrip(","): entry for entry in entries[1:]}
    for name, field in Settings.model_fields.items():
        spec = spec_of(name)
        assert f"unit: {spec.unit}\n" in by_flag[spec.flag]
        assert f"env var: {spec.env} | default: {field.default}" in by_flag[spec.flag]
    assert f"env var: {TOKENS_ENV} | default: 1024" in by_flag[TOKENS_FLAG]


def test_help_with_a_broken_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_MULTIMODAL_BLOCK_SIZE", "broken")
    monkeypatch.setenv("SGLANG_USE_BLOCK_ALLOCATOR", "broken")
    print_help("prog", lambda: print("what upstream says"))
    printed = capsys.readouterr().out
    assert printed.startswith("usage: prog")
    assert printed.index(args.BOOTSTRAP_ADDR_ENV) < printed.index("what upstream says")


def test_bootstrap_address_is_explained(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    args.log_bootstrap_addr_notice()
    assert caplog.messages == []
    monkeypatch.setenv(args.BOOTSTRAP_ADDR_ENV, "10.0.0.1:8998")
    args.log_bootstrap_addr_notice()
    (said,) = caplog.messages
    assert said.startswith(f"{args.BOOTSTRAP_ADDR_ENV}=10.0.0.1:8998 is not used: ")


def test_no_flag_collides_with_dynamo() -> None:
    from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup

    theirs = argparse.ArgumentParser(add_help=False)
    DynamoRuntimeArgGroup().add_arguments(theirs)
    assert overlaps(theirs) == []


def overlaps(theirs: argparse.ArgumentParser) -> list[str]:
    """Flags of ours that `theirs` has or would take as the abbreviation of one of its own."""
    return [
        ours
        for ours in build_parser()._option_string_actions
        if any(other.startswith(ours) for other in theirs._option_string_actions)
    ]
