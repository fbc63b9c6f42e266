# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""SGLang without an accelerator: when the plug-ins act, and that SGLang still asks for them."""

import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.plugins.hook_registry import HookType

from dynamo.sglang_mm_resume.sglang_cpu import finite_logits, hooks, platform

ROOT = Path(__file__).parents[2]
GROUPS = ["sglang.srt.platforms", "sglang.srt.plugins"]
# (where SGLang 0.5.21 asks, what it asks); a rename upstream would leave ours unused.
ASKED = [
    ("srt/arg_groups/model_override_base.py", "get_default_attention_backend"),
    ("srt/mem_cache/kv_cache_configurator.py", "get_mha_kv_pool_cls"),
    ("srt/mem_cache/kv_cache_configurator.py", "get_paged_allocator_cls"),
    ("srt/utils/common.py", "get_compile_backend"),
]

#: On every machine.
FINITE_LOGITS = [
    (target, finite_logits.keep_finite, HookType.AFTER) for target in finite_logits.TARGETS
]


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `hooks.register` hands to SGLang."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    calls: list[Any] = []
    monkeypatch.setattr(HookRegistry, "register", lambda *call: calls.append(call))
    return calls


def declared(group: str) -> EntryPoint:
    """Our entry point of `group`, as pyproject.toml declares it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"][group].items()
    return EntryPoint(name, value, group)


@pytest.mark.parametrize("device", [torch.cuda, torch.accelerator], ids=["cuda", "other"])
def test_inactive_where_torch_sees_an_accelerator(
    device: Any, registered: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "is_available", lambda: True)
    assert platform.activate() is None
    hooks.register()
    assert registered == FINITE_LOGITS


def test_inactive_where_the_own_cpu_engine_of_sglang_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert platform.activate() is None


def test_activate_names_a_platform_that_sglang_accepts() -> None:
    from sglang.srt.platforms import _load_platform_class

    name = platform.activate()
    assert name is not None
    ours = _load_platform_class(name)()
    assert ours.is_out_of_tree()
    assert ours.device_type == "cpu"
    assert ours.get_default_attention_backend() == "torch_native"
    assert ours.get_compile_backend("any") == "eager"
    assert isinstance(ours.get_mha_kv_pool_cls(), type)
    assert isinstance(ours.get_paged_allocator_cls(), type)


def test_platform_overrides_what_exists_upstream() -> None:
    from sglang.srt.platforms.interface import SRTPlatform

    from dynamo.sglang_mm_resume.sglang_cpu.torch_native import TorchNativeCpuPlatform

    own = {name: f for name, f in vars(TorchNativeCpuPlatform).items() if inspect.isfunction(f)}
    assert set(own) == {name for _, name in ASKED}
    for name, function in own.items():
        upstream = inspect.signature(getattr(SRTPlatform, name))
        assert list(inspect.signature(function).parameters) == list(upstream.parameters)


@pytest.mark.parametrize(("file", "name"), ASKED)
def test_sglang_asks_the_platform(file: str, name: str) -> None:
    import sglang

    source = (Path(str(sglang.__file__)).parent / file).read_text()
    assert f"current_platform.{name}(" in source


def test_hooks_are_registered_before_what_they_change(registered: list[Any]) -> None:
    hooks.register()
    assert registered == [
        *FINITE_LOGITS,
        (hooks.KV_MANAGER_INIT, hooks.kv_in_host_memory, HookType.BEFORE),
        (hooks.NIXL_AGENT_INIT, hooks.rest_between_polls, HookType.BEFORE),
        (hooks.PIN_MEMORY, hooks.leave_unpinned, HookType.REPLACE),
        (hooks.NCCL_INIT, hooks.leave_nccl_out, HookType.REPLACE),
        *((target, hooks.without_pinning, HookType.AROUND) for target in hooks.LORA_PINNING),
    ]


def test_hook_fits_the_constructor_of_sglang() -> None:
    constructor = pkgutil.resolve_name(hooks.KV_MANAGER_INIT)
    assert list(inspect.signature(constructor).parameters)[:2] == ["self", "args"]
    assert "kv_data_mem_kinds" in inspect.getsource(inspect.unwrap(constructor))


def test_hook_marks_kv_memory_as_host_memory() -> None:
    kv_args = SimpleNamespace(kv_data_ptrs=[1, 2, 3])
    hooks.kv_in_host_memory(object(), kv_args, "prefill", None, is_mla=False)
    assert kv_args.kv_data_mem_kinds == ["DRAM", "DRAM", "DRAM"]


def test_memory_is_not_pinned_for_a_device_that_is_not_there() -> None:
    frames = torch.zeros(2, 3)
    assert hooks.leave_unpinned(frames, device="cuda") is frames
    assert pkgutil.resolve_name(hooks.PIN_MEMORY) is torch.Tensor.pin_memory


@pytest.mark.parametrize("rests", [False, True])
def test_nixl_agents_rest_between_their_polls(rests: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from nixl import _api as nixl

    delays = []

    def init(agent: Any, name: str, config: Any) -> None:
        if rests:
            hooks.rest_between_polls(agent, name, config)
        delays.append(config.pthrDelay)
        raise ConnectionAbortedError  # all has been seen

    path, _, method = hooks.NIXL_AGENT_INIT.rpartition(".")
    monkeypatch.setattr(pkgutil.resolve_name(path), method, init)
    with pytest.raises(ConnectionAbortedError):
        nixl.nixl_agent("agent", nixl.nixl_agent_config(backends=[]))
    assert delays == [hooks.POLL_PERIOD_US if rests else 0]


@pytest.mark.parametrize("target", hooks.LORA_PINNING)
def test_what_is_hooked_for_lora_exists(target: str) -> None:
    assert callable(pkgutil.resolve_name(target))


@pytest.mark.parametrize("module", ["layers", "backend.torch_backend"])
def test_lora_still_pins_memory(module: str) -> None:
    source = inspect.getsource(pkgutil.resolve_name(f"sglang.srt.lora.{module}"))
    assert "pin_memory=True" in source


def test_nothing_is_pinned_inside_a_hooked_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*args: Any, pin_memory: bool = False, **named: Any) -> str:
        return "pinned" if pin_memory else "ordinary"

    monkeypatch.setattr(torch, "tensor", make)
    monkeypatch.setattr(torch, "zeros", make)

    def pin(shape: int, *, value: int) -> list[Any]:
        return [torch.zeros(shape, pin_memory=True), torch.tensor(value, pin_memory=True)]

    assert hooks.without_pinning(pin, 1, value=2) == ["ordinary", "ordinary"]
    assert pin(1, value=2) == ["pinned", "pinned"]


@pytest.mark.parametrize("group", GROUPS)
def test_entry_points_resolve(group: str) -> None:
    assert declared(group).load() in (platform.activate, hooks.register)


def test_sglang_finds_both_plug_ins_in_a_process_of_its_own() -> None:
    for group in GROUPS:
        if declared(group).name not in entry_points(group=group).names:
            pytest.skip("this project is not installed here: `make env` does that")
    script = (
        "from sglang.srt.platforms import current_platform\n"
        "from sglang.srt.plugins import load_plugins\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry\n"
        "load_plugins()\n"
        "print('found', type(current_platform).__name__, *sorted(HookRegistry._patched))\n"
    )
    # Hides a GPU that the machine may have: the plug-ins then have to act.
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env={**_environment(), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    targets = sorted(
        [
            *finite_logits.TARGETS,
            hooks.NIXL_AGENT_INIT,
            hooks.KV_MANAGER_INIT,
            hooks.NCCL_INIT,
            *hooks.LORA_PINNING,
            hooks.PIN_MEMORY,
        ]
    )
    assert f"found TorchNativeCpuPlatform {' '.join(targets)}" in done.stdout


def _environment() -> dict[str, str]:
    chosen = {"SGLANG_PLATFORM", "SGLANG_PLUGINS", "SGLANG_USE_CPU_ENGINE"}
    return {name: value for name, value in os.environ.items() if name not in chosen}


def test_without_nccl_sglang_has_ranks_talk_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, as NCCL is installed, it would ask torch for a GPU."""
    from sglang.srt.distributed.device_communicators.pynccl import PyNcclCommunicator
    from sglang.srt.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
    from sglang.srt.distributed.utils import StatelessProcessGroup

    assert pkgutil.resolve_name(hooks.NCCL_INIT) is NCCLLibrary.__init__
    monkeypatch.setattr(NCCLLibrary, "__init__", hooks.leave_nccl_out)
    group = StatelessProcessGroup(rank=0, world_size=2, store=None)
    assert PyNcclCommunicator(group, "cpu").disabled
