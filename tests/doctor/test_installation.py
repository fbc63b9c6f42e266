# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Each check of the installation, with metadata and facts that are right and wrong."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.doctor import installation
from dynamo.sglang_mm_resume.doctor.gpus import Gpu, TorchFacts, TorchUnusable, torch_facts
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result

REQUIRES = {
    installation.OURS: ["ai-dynamo>=1.6.0,<1.7", "nixl<1.6,>=1.5", "pydantic>=2"],
    "ai-dynamo": ['sglang==0.4; extra == "other"', 'sglang[diffusion]==0.5.21; extra == "sglang"'],
    "sglang": ["torch==2.13.0"],
}


class Installed:
    """Stands for `importlib.metadata` of an environment with these versions."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        self._versions = versions

    def version(self, name: str) -> str:
        if name not in self._versions:
            raise PackageNotFoundError(name)
        return self._versions[name]

    def requires(self, name: str) -> list[str]:
        self.version(name)
        return REQUIRES[name]


ALL = {
    installation.OURS: "0.1.0",
    "ai-dynamo": "1.6.0",
    "nixl": "1.5.0",
    "sglang": "0.5.21",
    "torch": "2.13.0+cu130",
}


def package(name: str, **versions: str | None) -> Result:
    """The check of `name` where some versions are others, or (None) not there."""
    changed = {key.replace("_", "-"): value for key, value in versions.items()}
    found = {k: v for k, v in {**ALL, **changed}.items() if v is not None}
    installed = Installed(found)
    return installation.package(name, installed.version, installed.requires)


@pytest.mark.parametrize("name", installation.REQUIRED_BY)
def test_what_is_required_is_well(name: str) -> None:
    result = package(name)
    assert result.outcome is Outcome.OK
    assert ALL[name] in result.text


@pytest.mark.parametrize("name", installation.REQUIRED_BY)
def test_this_environment_is_the_one_that_is_required(name: str) -> None:
    """Requirements are really found in the metadata: nothing is skipped."""
    assert installation.package(name).outcome is Outcome.OK


def test_this_environment_has_the_component_and_its_python() -> None:
    assert installation.component().outcome is Outcome.OK
    assert installation.python().outcome is Outcome.OK


@pytest.mark.parametrize(
    ("name", "version", "wanted"),
    [
        ("ai-dynamo", "1.7.0", "ai-dynamo<1.7,>=1.6.0"),
        ("nixl", "1.4.9", "nixl<1.6,>=1.5"),
        ("sglang", "0.5.20", "sglang==0.5.21"),
        ("torch", "2.12.1", "torch==2.13.0"),
    ],
)
def test_another_version_fails_and_names_the_right_one(
    name: str, version: str, wanted: str
) -> None:
    result = package(name, **{name.replace("-", "_"): version})
    assert result.outcome is Outcome.FAIL
    assert version in result.text
    assert wanted in result.action


def test_missing_packages_fail_but_a_processor_may_do_without_sglang() -> None:
    assert package("nixl", nixl=None).outcome is Outcome.FAIL
    assert package("sglang", sglang=None).outcome is Outcome.WARN


def test_where_nobody_says_what_fits_nothing_is_claimed() -> None:
    assert package("torch", sglang=None).outcome is Outcome.SKIP


def test_a_folder_of_sources_is_no_installation() -> None:
    result = installation.component(Installed({}).version)
    assert (result.outcome, result.action) == (Outcome.FAIL, "pip install .")


def test_an_old_python_fails() -> None:
    assert installation.python("3.10.4", ">=3.11").outcome is Outcome.FAIL
    assert installation.python("3.12.0", ">=3.11").outcome is Outcome.OK


def test_nixl_must_be_built_for_the_cuda_of_torch() -> None:
    both = Installed({"nixl-cu12": "1.5.0"})
    assert installation.nixl_build("12.8", both.version).outcome is Outcome.OK
    result = installation.nixl_build("13.0", both.version)
    assert result.outcome is Outcome.FAIL
    assert "nixl[cu13]" in result.action
    assert installation.nixl_build(None, both.version).outcome is Outcome.SKIP


GPU = Gpu(name="NVIDIA H200", memory_mib=143771)


@pytest.mark.parametrize(
    ("gpus", "cuda", "devices", "outcome"),
    [
        ([GPU], "13.0", ["/dev/nvidia0"], Outcome.OK),
        ([], "13.0", [], Outcome.SKIP),
        ([], None, [], Outcome.SKIP),
        ([], "13.0", ["/dev/nvidia0"], Outcome.FAIL),
        ([], None, ["/dev/nvidia0"], Outcome.FAIL),
    ],
)
def test_a_gpu_that_is_there_must_be_seen(
    gpus: list[Gpu], cuda: str | None, devices: list[str], outcome: Outcome
) -> None:
    facts = TorchFacts(version="2.13.0", cuda=cuda, gpus=gpus, videos=True)
    result = installation.gpu(facts, devices, "580.65.06")
    assert result.outcome is outcome
    if outcome is Outcome.OK:
        assert "H200" in result.text
        assert "580.65.06" in result.text


def test_a_build_without_cuda_is_told_from_a_driver_that_does_not_fit() -> None:
    def action(cuda: str | None) -> str:
        facts = TorchFacts(version="2.13.0", cuda=cuda, gpus=[], videos=True)
        return installation.gpu(facts, ["/dev/nvidia0"], None).action

    assert "build" in action(None)
    assert "driver" in action("13.0")


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build",
    ],
)
def test_the_driver_is_read_from_what_its_module_says(line: str, tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert installation.driver_version(file) is None
    file.write_text(f"{line}\nGCC version:  gcc version 12.3.0\n")
    assert installation.driver_version(file) == "550.54.15"


def test_torch_that_does_not_answer_is_given_up() -> None:
    with pytest.raises(TorchUnusable, match=r"within 0\.01 s"):
        torch_facts(limit_s=0.01)


def test_torch_that_cannot_be_imported_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no CUDA library')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TorchUnusable, match="no CUDA library"):
        torch_facts()


def test_videos() -> None:
    facts = TorchFacts(version="2.13.0", cuda=None, gpus=[], videos=True)
    assert installation.videos(facts).outcome is Outcome.OK
    without = installation.videos(facts.model_copy(update={"videos": False}))
    assert without.outcome is Outcome.WARN
    assert "ffmpeg" in without.action
