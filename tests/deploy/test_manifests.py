# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""deploy/k8s: each container's command line is read by the program's own parsers, and what several
components must agree on is the same.

What the operator of Dynamo 1.6 adds to a container is written down here in `OPERATOR_*`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from dynamo.common.utils.graceful_shutdown import get_grace_period_seconds

from dynamo.sglang_mm_resume.workers import start_prefill
from dynamo.sglang_mm_resume.workers.disagg import DECODE_COMPONENT
from tests.support.command_lines import (
    DECODE,
    ENCODE,
    FRONTEND,
    PLANNER,
    PREFILL,
    PROCESSOR,
    CommandLine,
    Mistake,
    read,
)
from tests.support.planner import WORKER_COMPONENT_NAMES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "k8s"
FILES = sorted(FOLDER.glob("*.yaml"))
SOURCES = ROOT / "components" / "src" / "dynamo" / "sglang_mm_resume"

Manifest = dict[str, Any]

#: Of the port that serves /health, /live and /metrics of a component that is a worker.
OPERATOR_SYSTEM_PORT = "system"
OPERATOR_WORKER_TYPES = ("worker", "prefill", "decode")
OPERATOR_ENV = {"DYN_NAMESPACE": "default-graph", "DYN_DISCOVERY_BACKEND": "kubernetes"}
OPERATOR_WORKER_ENV = {
    **OPERATOR_ENV,
    "DYN_NAMESPACE_WORKER_SUFFIX": "0a1b2c3d",
    "DYN_SYSTEM_PORT": "9090",
}

#: Between the end of the drain and that of the process: SGLang's processes end.
ENGINE_ENDS_S = 20
ENGINES = (PREFILL, DECODE)


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@dataclass(frozen=True)
class Component:
    """One component of a graph."""

    graph: Manifest
    spec: Manifest

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def pod(self) -> Manifest:
        found: Manifest = self.spec["podTemplate"]["spec"]
        return found

    @property
    def main(self) -> Manifest:
        (found,) = self.pod["containers"]
        assert found["name"] == "main"
        return dict(found)

    @property
    def env(self) -> dict[str, str]:
        """As the container sees it, but for what comes from secrets and from the operator."""
        entries = [*self.graph["spec"].get("env", []), *self.main.get("env", [])]
        return {entry["name"]: entry.get("value", "from-a-secret") for entry in entries}

    @cached_property
    def line(self) -> CommandLine:
        command = [*self.main["command"], *self.main.get("args", [])]
        is_worker = self.spec["type"] in OPERATOR_WORKER_TYPES
        return read(command, {**(OPERATOR_WORKER_ENV if is_worker else OPERATOR_ENV), **self.env})

    @property
    def limits(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.main["resources"]["limits"]
        return found

    @property
    def gpus(self) -> int:
        return int(self.limits.get("nvidia.com/gpu", 0))

    @property
    def nodes(self) -> int:
        return int(self.spec.get("multinode", {}).get("nodeCount", 1))


class Graph:
    """One DynamoGraphDeployment."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.name = str(manifest["metadata"]["name"])
        self.components = [Component(manifest, spec) for spec in manifest["spec"]["components"]]

    def of(self, *modules: str) -> list[Component]:
        return [each for each in self.components if each.line.module in modules]

    def only(self, module: str) -> Component:
        (found,) = self.of(module)
        return found


GRAPHS = [
    Graph(path, document)
    for path in FILES
    for document in documents(path)
    if document["kind"] == "DynamoGraphDeployment"
]
COMPONENTS = [component for graph in GRAPHS for component in graph.components]
CONTAINERS = [
    *(component.main for component in COMPONENTS),
    *(
        container
        for path in FILES
        for document in documents(path)
        if document["kind"] == "Job"
        for container in document["spec"]["template"]["spec"]["containers"]
    ),
]


def each_graph(*needed: str) -> pytest.MarkDecorator:
    """Graphs that have these components."""
    found = [graph for graph in GRAPHS if set(needed) <= {each.name for each in graph.components}]
    assert found
    return pytest.mark.parametrize("graph", found, ids=lambda graph: graph.path.stem)


def each_component(*types: str) -> pytest.MarkDecorator:
    found = [each for each in COMPONENTS if not types or each.spec["type"] in types]
    return pytest.mark.parametrize(
        "component", found, ids=lambda each: f"{each.graph['metadata']['name']}-{each.name}"
    )


def test_there_is_a_manifest_for_each_topology() -> None:
    assert {path.stem for path in FILES} == {
        *("e-pd", "e-p-d", "encoders", "rdma", "planner", "autoscaling", "model-cache"),
    }
    assert [graph.path.stem for graph in GRAPHS] == sorted(
        {path.stem for path in FILES} - {"model-cache"}
    )


@each_graph()
def test_kinds_and_names(graph: Graph) -> None:
    assert graph.manifest["apiVersion"] == "nvidia.com/v1beta1"
    assert graph.manifest["spec"]["backendFramework"] == "sglang"
    names = [component.name for component in graph.components]
    assert len(set(names)) == len(names)
    # Grove's limit for the names of the graph, the component and its role together.
    assert len(graph.name) + 2 * max(map(len, names)) + len("-ldr") <= 45


@each_component()
def test_the_program_takes_its_command_line(component: Component) -> None:
    """Every flag, value and variable: `read` refuses what the program would not look at."""
    types = {
        FRONTEND: {"frontend"},
        PROCESSOR: {"worker"},
        ENCODE: {"worker"},
        PREFILL: {"worker", "prefill"},
        DECODE: {"decode"},
        PLANNER: {"planner"},
    }
    assert component.spec["type"] in types[component.line.module]


@pytest.mark.parametrize(
    ("command", "env"),
    [
        (["python3", "-m", "dynamo.sglang"], {}),
        (["python", "-m", PROCESSOR, "--model-path", "m"], {}),
        (["python3", "-m", PROCESSOR, "--model-path", "m", "--dtype", "bfloat16"], {}),
        (["python3", "-m", PREFILL, "--model-path", "m", "--mem-fraction", "0.8"], {}),
        (["python3", "-m", PREFILL, "--model-path", "m", "--tp-size", "two"], {}),
        (["python3", "-m", ENCODE, "--model-path", "m", "--multimodal-block-size", "0"], {}),
        (["python3", "-m", ENCODE, "--model-path", "m"], {"DYN_SGL_MM_RESUME_GRACE_S": "1"}),
        (["python3", "-m", ENCODE, "--model-path", "m"], {"SGLANG_MULTIMODAL_BLOCK_SIZE": "x"}),
        (["python3", "-m", FRONTEND, "--port", "8000"], {}),
        (["python3", "-m", PLANNER, "--config", '{"backend": "sglang", "max_gpus": 8}'], {}),
    ],
)
def test_a_mistake_is_found(command: list[str], env: dict[str, str]) -> None:
    with pytest.raises(Mistake):
        read(command, env)


@each_graph()
def test_workers_find_each_other(graph: Graph) -> None:
    """All are workers for the operator, which appends to their namespace; the frontend looks for
    the beginning of it, which the operator tells it.
    """
    workers = graph.of(PROCESSOR, ENCODE, PREFILL, DECODE)
    suffix = OPERATOR_WORKER_ENV["DYN_NAMESPACE_WORKER_SUFFIX"]
    expected = f"{OPERATOR_ENV['DYN_NAMESPACE']}-{suffix}"
    assert {worker.line.namespace for worker in workers} == {expected}
    assert all(worker.line.options["endpoint"] is None for worker in workers)


@each_graph()
def test_they_serve_the_same(graph: Graph) -> None:
    workers = graph.of(PROCESSOR, ENCODE, PREFILL, DECODE)

    def values(option: str, *modules: str) -> set[Any]:
        return {each.line.options.get(option) for each in workers if each.line.module in modules}

    assert len(values("model_path", PROCESSOR, ENCODE, PREFILL, DECODE)) == 1
    assert len(values("served_model_name", PROCESSOR, ENCODE, PREFILL, DECODE)) == 1
    assert len(values("dtype", ENCODE, PREFILL, DECODE)) == 1
    assert len(values("context_length", PROCESSOR, *ENGINES)) == 1
    pages = {size or 1 for size in values("page_size", PROCESSOR, *ENGINES)}
    assert len(pages) == 1
    assert len({each.line.settings.block_size for each in graph.of(ENCODE, PREFILL)}) == 1
    assert len({each.line.settings.use_block_allocator for each in graph.of(ENCODE, PREFILL)}) == 1


@each_graph()
def test_decode_workers_are_known_to_the_others(graph: Graph) -> None:
    has_decode = bool(graph.of(DECODE))
    prefill = graph.only(PREFILL)
    assert graph.only(PROCESSOR).line.options["decode_workers"] == has_decode
    assert (prefill.line.options["disaggregation_mode"] == "prefill") == has_decode
    assert (prefill.spec["type"] == "prefill") == has_decode
    for engine in graph.of(*ENGINES) if has_decode else ():
        assert engine.line.options["disaggregation_transfer_backend"] == "nixl"
    # Else the server that decode workers ask for a prefill worker's KV listens on loopback.
    assert not has_decode or prefill.line.options["host"] == "0.0.0.0"


@each_graph()
def test_components_have_the_names_that_the_planner_looks_for(graph: Graph) -> None:
    names = WORKER_COMPONENT_NAMES["sglang"]
    assert names.prefill_worker_component_name == start_prefill.COMPONENT
    assert names.decode_worker_component_name == DECODE_COMPONENT
    assert graph.only(PREFILL).name == names.prefill_worker_k8s_name
    assert {each.name for each in graph.of(DECODE)} <= {names.decode_worker_k8s_name}


@each_component(*OPERATOR_WORKER_TYPES)
def test_probes_ask_the_system_port(component: Component) -> None:
    assert "DYN_SYSTEM_PORT" not in component.env, "the operator's probes and scrapes use theirs"
    paths = {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/health"}
    for name, path in paths.items():
        probe = component.main[name]
        assert probe["httpGet"] == {"path": path, "port": OPERATOR_SYSTEM_PORT}
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    # One slow answer does not end a worker with all that it has begun.
    live = component.main["livenessProbe"]
    assert live["failureThreshold"] * live["periodSeconds"] >= 30


@each_component(*OPERATOR_WORKER_TYPES)
def test_kubernetes_waits_for_longer_than_a_worker_drains(
    component: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in component.env.items():
        monkeypatch.setenv(name, value)
    needed = component.line.settings.shutdown_grace_s + get_grace_period_seconds() + ENGINE_ENDS_S
    assert component.pod["terminationGracePeriodSeconds"] > needed


@each_component("frontend")
def test_the_frontend_leaves_after_the_workers_have_answered(component: Component) -> None:
    worker = next(each for each in COMPONENTS if each.graph is component.graph and each.gpus)
    grace = int(component.env["DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"])
    assert worker.line.settings.shutdown_grace_s < grace
    assert grace < component.pod["terminationGracePeriodSeconds"]


@each_graph()
def test_a_pod_that_drains_stays_in_discovery(graph: Graph) -> None:
    """By pods, it would leave at once, and Dynamo's clients break off what it answers."""
    annotations = graph.manifest["metadata"]["annotations"]
    assert annotations["nvidia.com/dynamo-kube-discovery-mode"] == "container"


@each_component()
def test_gpus(component: Component) -> None:
    options = component.line.options
    match component.line.module:
        case module if module in ENGINES:
            ranks = options["tp_size"] * options["pp_size"]
            assert component.gpus * component.nodes == ranks
        case module if module == ENCODE:
            assert component.gpus == 1
        case _:
            assert component.gpus == 0
    assert bool(component.gpus) == ("sharedMemorySize" in component.spec)
    if component.nodes > 1:
        # The operator appends the flags for several nodes to a command that is Python itself.
        assert component.main["command"][0] == "python3"


@each_component()
def test_rights(component: Component) -> None:
    security, user = component.main.get("securityContext"), component.pod.get("securityContext")
    cards = int(component.limits.get("rdma/ib", 0))
    if component.line.module == PLANNER:
        assert security is None, "the image's own"
    elif cards:
        assert cards == component.gpus
        assert security == {"capabilities": {"add": ["IPC_LOCK"]}}
        assert user["runAsUser"] == 0, "for another user, Kubernetes' capabilities have no effect"
    else:
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert user["runAsNonRoot"]
        assert user["runAsUser"] == 1000


@each_graph()
def test_rdma_is_for_all_that_move_embeddings_or_none(graph: Graph) -> None:
    movers = graph.of(ENCODE, PREFILL, DECODE)
    assert len({bool(each.limits.get("rdma/ib")) for each in movers}) == 1
    transports = {each.env.get("UCX_TLS") for each in movers}
    assert len(transports) == 1
    if transports != {None}:
        (names,) = transports
        assert "tcp" not in str(names).split(","), "it would be taken without a word"


@each_graph()
def test_pools_are_on_gpus_where_rdma_reaches_them(graph: Graph) -> None:
    """Pods see no processes of each other: without RDMA, writes go through the host."""
    for each in graph.of(ENCODE, PREFILL):
        has_rdma = bool(each.limits.get("rdma/ib"))
        assert each.line.settings.pool_device == ("auto" if has_rdma else "cpu"), each.name


@each_component("frontend", *OPERATOR_WORKER_TYPES)
def test_the_model_cache(component: Component) -> None:
    claims = {
        document["metadata"]["name"]
        for document in documents(FOLDER / "model-cache.yaml")
        if document["kind"] == "PersistentVolumeClaim"
    }
    (volume,) = component.pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] in claims
    (mount,) = component.main["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": component.env["HF_HOME"]}


def test_secrets_are_named_and_not_told() -> None:
    for path in FILES:
        for entry in environment_entries(documents(path)):
            if "TOKEN" in entry["name"]:
                reference = entry["valueFrom"]["secretKeyRef"]
                assert reference == {"name": "hf-token-secret", "key": "HF_TOKEN", "optional": True}


def environment_entries(node: Any) -> Iterator[Manifest]:
    """Every variable of a document, wherever it is."""
    if isinstance(node, list):
        for each in node:
            yield from environment_entries(each)
    elif isinstance(node, dict):
        yield from node.get("env", [])
        for each in node.values():
            yield from environment_entries(each)


def test_images_are_pinned_to_this_version_and_its_dynamo() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = re.search(r"^FROM .*:(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    dynamo = base[1]
    assert f"ai-dynamo=={dynamo}\n" in (ROOT / "requirements/cpu.txt").read_text()
    ours = f"registry.example.com/dynamo-sglang-mm-resume:{project['version']}"
    planner = f"nvcr.io/nvidia/ai-dynamo/dynamo-planner:{dynamo}"
    assert {container["image"] for container in CONTAINERS} == {ours, planner}
    for component in COMPONENTS:
        # Ours does not tell the operator which Dynamo is in it.
        told = dynamo if component.main["image"] == ours else None
        assert component.spec.get("runtimeVersionOverride") == told


def test_everything_that_runs_says_what_it_needs() -> None:
    for container in CONTAINERS:
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_encode_workers_are_scaled_by_metrics_that_exist() -> None:
    graph = next(graph for graph in GRAPHS if graph.path.stem == "autoscaling")
    (scaled,) = [each["spec"] for each in documents(graph.path) if each["kind"] == "ScaledObject"]
    encode = graph.only(ENCODE)
    assert "scalingAdapter" in encode.spec
    assert scaled["scaleTargetRef"] == {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeploymentScalingAdapter",
        "name": f"{graph.name}-{encode.name}",
    }
    assert scaled["minReplicaCount"] <= encode.spec["replicas"] <= scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    query = trigger["metadata"]["query"]
    names = re.findall(r"dynamo_component_mm_resume_(\w+)\{", query)
    assert names
    sources = "".join(path.read_text() for path in SOURCES.rglob("*.py"))
    for name in names:
        assert f'"{name}"' in sources, f"no metric {name}"
    for pattern in re.findall(r'dynamo_namespace=~"([^"]+)"', query):
        assert re.fullmatch(pattern, f"default-{graph.name}-0a1b2c3d")


def test_the_planner_scales_what_publishes_its_load() -> None:
    graph = next(graph for graph in GRAPHS if graph.of(PLANNER))
    options = graph.only(PLANNER).line.options
    engines = graph.of(*ENGINES)
    assert options["mode"] == "disagg"
    assert options["backend"] == "sglang"
    assert sum(each.gpus * each.spec["replicas"] for each in engines) <= options["max_gpu_budget"]
    for each in engines:
        assert "scalingAdapter" in each.spec
        assert "DYN_FORWARDPASS_METRIC_PORT" in each.env


def test_the_guide_has_every_manifest_and_every_placeholder() -> None:
    guide = (FOLDER / "README.md").read_text()
    for path in FILES:
        assert f"[{path.name}]({path.name})" in guide
        assert "README.md" in path.read_text()
    for placeholder in ("registry.example.com", "hf-token-secret", "model-cache", "default-"):
        assert placeholder in guide
