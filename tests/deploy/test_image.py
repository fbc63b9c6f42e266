# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The image and the services that run it on one machine. Needs no Docker: the rules that a linter
of Dockerfiles would check are checked here, and every command line by the program's own parsers.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from dynamo.common.utils.graceful_shutdown import get_grace_period_seconds

from tests.support.command_lines import ENCODE, FRONTEND, PREFILL, PROCESSOR, CommandLine, read

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "compose.yaml"
GUIDE = ROOT / "deploy" / "README.md"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
WHEEL = f"dynamo_sglang_mm_resume-{VERSION}-py3-none-any.whl"

#: Between the end of the drain and that of the process: SGLang's processes end.
ENGINE_ENDS_S = 20
WORKERS = {"processor": PROCESSOR, "encode": ENCODE, "prefill": PREFILL}


# --- The image ---


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile and its arguments, on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield name.upper(), arguments.strip()


def complaints(text: str) -> list[str]:
    """What a linter would say about a Dockerfile."""
    found = list(instructions(text))
    users = [arguments for name, arguments in found if name == "USER"]
    rules = {
        "an image without a tag, or with a tag that moves": any(
            not re.search(r":[\w.-]+$", arguments.split(" ")[0]) or ":latest" in arguments
            for name, arguments in found
            if name == "FROM"
        ),
        "ADD: COPY says what happens": any(name == "ADD" for name, _ in found),
        "it runs as root": not users or users[-1].partition(":")[0] in ("root", "0"),
        "a user by name, which Kubernetes cannot tell from root": bool(users)
        and not users[-1].partition(":")[0].isdigit(),
        "pip keeps its cache": _runs(found, "pip install", without="--no-cache-dir"),
        "pip resolves what the image has in other versions": _runs(
            found, "pip install", without="--no-deps"
        ),
        "pip downloads": _runs(found, "pip install", without="--no-index"),
        "apt keeps its lists": _runs(found, "apt-get install", without="rm -rf /var/lib/apt/lists"),
        "something from the net is run": _runs(found, "curl") or _runs(found, "wget"),
        "sudo": _runs(found, "sudo"),
        "a relative WORKDIR": any(
            name == "WORKDIR" and not arguments.startswith("/") for name, arguments in found
        ),
        "a secret in the image": any(
            name in ("ENV", "ARG") and re.search("token|password|secret", arguments, re.IGNORECASE)
            for name, arguments in found
        ),
    }
    return [complaint for complaint, is_so in rules.items() if is_so]


def _runs(found: list[tuple[str, str]], what: str, without: str | None = None) -> bool:
    commands = [arguments for name, arguments in found if name == "RUN" and what in arguments]
    return any(without is None or without not in command for command in commands)


def test_a_linter_has_nothing_to_say() -> None:
    assert complaints(DOCKERFILE.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (":1.6.0", ":latest"),
        ("sglang-runtime:1.6.0", "sglang-runtime"),
        ("COPY", "ADD"),
        ("USER 1000:0", "USER root"),
        ("USER 1000:0", "USER dynamo"),
        ("USER 1000:0", ""),
        (" --no-cache-dir", ""),
        (" --no-deps", ""),
        (" --no-index", ""),
        ("RUN python3", "RUN sudo python3"),
        ("RUN python3", "RUN curl -sSL https://example.com | sh; python3"),
        ("USER root", "ENV HF_TOKEN=hf_0\nUSER root"),
    ],
)
def test_each_rule_bites(old: str, new: str) -> None:
    text = DOCKERFILE.read_text()
    assert old in text
    assert complaints(text.replace(old, new))


def test_it_has_the_wheel_of_this_version_and_nothing_else() -> None:
    found = list(instructions(DOCKERFILE.read_text()))
    (copied,) = [shlex.split(arguments) for name, arguments in found if name == "COPY"]
    (command,) = [arguments for name, arguments in found if name == "RUN"]
    sources = [each for each in copied[:-1] if not each.startswith("--")]
    assert sources == [f"dist/{WHEEL}"]
    assert f"{copied[-1]}{WHEEL}" in command
    assert {name for name, _ in found} == {"FROM", "COPY", "USER", "RUN"}


def test_only_wheels_are_sent_to_the_builder() -> None:
    ignored = DOCKERFILE.with_suffix(".dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!dist/*.whl"]


# --- One machine ---


@dataclass(frozen=True)
class Service:
    name: str
    spec: dict[str, Any]

    @property
    def env(self) -> dict[str, str]:
        """Without what is passed on from the shell, if it is set there."""
        given = self.spec["environment"].items()
        return {name: filled(value) for name, value in given if value is not None}

    @cached_property
    def line(self) -> CommandLine:
        command = [*self.spec["entrypoint"], *self.spec["command"]]
        return read([filled(part) for part in command], self.env)


def filled(text: str) -> str:
    """Compose's own variables, as they are where nobody sets them."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


COMPOSED = yaml.safe_load(COMPOSE.read_text())
SERVICES = {name: Service(name, spec) for name, spec in COMPOSED["services"].items()}

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
each_worker = pytest.mark.parametrize("service", [SERVICES[name] for name in WORKERS], ids=WORKERS)


def test_the_services_are_the_graph() -> None:
    modules = {name: service.line.module for name, service in SERVICES.items()}
    assert modules == {"frontend": FRONTEND, **WORKERS}


@each_service
def test_image_and_rights(service: Service) -> None:
    assert service.spec["image"].endswith(f":{VERSION}")
    build = service.spec["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
    assert service.spec["cap_drop"] == ["ALL"]
    assert service.spec["security_opt"] == ["no-new-privileges:true"]
    assert service.spec["restart"] == "unless-stopped"
    volumes = [mount.partition(":")[0] for mount in service.spec["volumes"]]
    assert set(volumes) == set(COMPOSED["volumes"])


@each_service
def test_all_look_in_the_same_places(service: Service) -> None:
    mounts = [mount.split(":")[1] for mount in service.spec["volumes"]]
    assert service.env["DYN_DISCOVERY_BACKEND"] == "file"
    assert service.env["DYN_FILE_KV"] in mounts
    assert any(service.env["HF_HOME"].startswith(f"{mount}/") for mount in mounts)


@each_worker
def test_a_worker_is_asked_for_its_health_where_it_answers(service: Service) -> None:
    asked = " ".join(service.spec["healthcheck"]["test"])
    assert f"http://127.0.0.1:{service.env['DYN_SYSTEM_PORT']}/health" in asked


@pytest.mark.parametrize("name", ["encode", "prefill"])
def test_pools_are_in_host_memory_where_containers_see_no_processes_of_each_other(
    name: str,
) -> None:
    """cuda_ipc does not work between PID namespaces, and UCX falls back to 0.3 GB/s."""
    service = SERVICES[name]
    assert "pid" in service.spec or service.line.settings.pool_device == "cpu"


def test_the_frontend_is_asked_where_it_answers_and_is_on_loopback() -> None:
    frontend = SERVICES["frontend"]
    port = frontend.line.options["http_port"]
    assert f"http://127.0.0.1:{port}/health" in " ".join(frontend.spec["healthcheck"]["test"])
    assert frontend.spec["ports"] == [f"127.0.0.1:{port}:{port}"]


@each_worker
def test_docker_waits_for_longer_than_a_worker_drains(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in service.env.items():
        monkeypatch.setenv(name, value)
    needed = service.line.settings.shutdown_grace_s + get_grace_period_seconds() + ENGINE_ENDS_S
    assert seconds(service.spec["stop_grace_period"]) > needed


def test_the_frontend_leaves_after_the_workers_have_answered() -> None:
    frontend = SERVICES["frontend"]
    grace = int(frontend.env["DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"])
    assert SERVICES["prefill"].line.settings.shutdown_grace_s < grace
    assert grace < seconds(frontend.spec["stop_grace_period"])


def test_they_serve_the_same() -> None:
    options = {name: SERVICES[name].line.options for name in WORKERS}
    assert len({each["model_path"] for each in options.values()}) == 1
    assert options["encode"]["dtype"] == options["prefill"]["dtype"]
    assert options["processor"]["context_length"] == options["prefill"]["context_length"]


@each_service
def test_gpus(service: Service) -> None:
    devices = service.spec.get("deploy", {}).get("resources", {}).get("reservations", {})
    if service.name in ("encode", "prefill"):
        (device,) = devices["devices"]
        assert device["driver"] == "nvidia"
        assert device["capabilities"] == ["gpu"]
        assert "shm_size" in service.spec
    else:
        assert not devices


def test_the_guide_has_every_variable() -> None:
    guide = GUIDE.read_text()
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text()))
    assert variables == {"MODEL", "ENCODE_GPU", "PREFILL_GPU", "MEM_FRACTION"}
    passed_on = {
        name
        for service in SERVICES.values()
        for name, value in service.spec["environment"].items()
        if value is None
    }
    assert passed_on == {"HF_TOKEN"}
    for name in variables | passed_on:
        assert f"`{name}`" in guide


def test_compose_takes_the_file() -> None:
    compose = ["docker", "compose"]
    if (
        not shutil.which("docker")
        or subprocess.run([*compose, "version"], capture_output=True, timeout=60).returncode
    ):
        pytest.skip("Docker's compose plug-in is not installed")
    checked = subprocess.run(
        [*compose, "--file", COMPOSE, "config", "--quiet"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr
