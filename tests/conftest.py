# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Tiers of tests, one running deployment at a time, models, answers to compare with, leftovers.

A test belongs to one tier. Tests without a process are in `test`, and so is tests/test_main_job.py,
which starts one deployment. Tests of folders that start deployments are in `full`, and whatever is
marked so. Matrices and clients of other projects are marked `nightly`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples.local_stack import LocalStack
from tests.support.deployments import READY_DEADLINE_S, Keeper, Model
from tests.support.worker_status import leftovers, wait_until

if TYPE_CHECKING:
    from tests.support.oracle import Oracle

TESTS = Path(__file__).parent
ROOT = TESTS.parent
WHOLE_STACK = (TESTS / "integration", TESTS / "faults", TESTS / "examples")
TRAINED_MODEL = ROOT / "examples" / "demo_model" / "weights"

# A start of the deployment alone takes a minute or two where others use the machine as well.
INTEGRATION_TIMEOUT_S = 480

# With these random weights, pictures of every size have answers of their own.
RANDOM_MODEL_SEED = 1
IDLE_DEADLINE_S = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the option."""
    parser.addoption(
        "--tier",
        choices=("test", "full", "nightly", "all"),
        help="run this tier; `full` includes `test`. Default: all where files or folders are "
        "named, else `test`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers."""
    config.addinivalue_line("markers", "integration: starts processes of the real deployment")
    config.addinivalue_line("markers", "full: must hold for a merge, and takes processes or time")
    config.addinivalue_line("markers", "nightly: matrices, and clients of other projects")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the tier, and put tests of one deployment next to each other."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in WHOLE_STACK):
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.timeout(INTEGRATION_TIMEOUT_S))
            if not item.get_closest_marker("nightly"):
                item.add_marker(pytest.mark.full)
    _choose(config, items)
    items.sort(key=_deployment_of)  # stable: the order is otherwise left as it is


def _choose(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the other tiers, as pytest's own `-m` would."""
    tier = config.getoption("--tier") or ("all" if config.getoption("file_or_dir") else "test")
    wanted = {"full": ("test", "full"), "all": ("test", "full", "nightly")}.get(tier, (tier,))
    others = [item for item in items if _tier_of(item) not in wanted]
    items[:] = [item for item in items if _tier_of(item) in wanted]
    config.hook.pytest_deselected(items=others)


def _tier_of(item: pytest.Item) -> str:
    return next((name for name in ("nightly", "full") if item.get_closest_marker(name)), "test")


def _deployment_of(item: pytest.Item) -> str:
    deployment = getattr(getattr(item, "module", None), "DEPLOYMENT", None)
    return "" if deployment is None else deployment.name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """What failed over the whole deployment is told with the last lines of its logs."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, LocalStack):
        for name in ("frontend", *stack.worker_urls):
            report.sections.append((f"the end of {name}'s log", stack.log_tail(name)))
    return report


class Models(dict[Model, Path]):
    """Folders of models; those with random weights are built when they are asked for."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        super().__init__(trained=TRAINED_MODEL)
        self._folders = folders

    def __missing__(self, model: Model) -> Path:
        folder = self._folders.mktemp(f"{model}-model")
        family = "qwen2_5_vl" if model == "random" else model
        build = ROOT / "examples" / "demo_model" / "build.py"
        command = [sys.executable, build, "--out", folder, "--seed", str(RANDOM_MODEL_SEED)]
        command += ["--family", family]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        self[model] = folder
        return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Folders of the models with random weights and of the one that the demo serves."""
    return Models(tmp_path_factory)


@pytest.fixture(scope="session")
def oracle(models: Models) -> Oracle:
    """Transformers on the random weights; imported only where it is needed, as it takes seconds."""
    from tests.support.oracle import Oracle

    return Oracle(models["random"])


@pytest.fixture(scope="session")
def keeper(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """Starts and stops deployments; their logs are kept with pytest's temporary folders."""
    keeper = Keeper(models, tmp_path_factory.mktemp("logs"))
    yield keeper
    keeper.stop()


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, keeper: Keeper) -> LocalStack:
    """The deployment that the module names by `DEPLOYMENT`, ready to serve."""
    return keeper.get(request.module.DEPLOYMENT)


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: all blocks free, nothing in quarantine, no transfer, no task (R16)."""
    if "stack" not in request.fixturenames:
        yield
        return
    stack: LocalStack = request.getfixturevalue("stack")
    _start_what_was_killed(stack)
    yield
    wait_until(lambda: not leftovers(stack), IDLE_DEADLINE_S)
    assert leftovers(stack) == []


def _start_what_was_killed(stack: LocalStack) -> None:
    """A test that failed half-way does not fail those after it."""
    running = {process.name for process in stack.processes}
    killed = [name for name in ("frontend", *stack.worker_urls) if name not in running]
    for name in killed:
        stack.restart(name)
    if killed:
        stack.wait_ready(READY_DEADLINE_S)
