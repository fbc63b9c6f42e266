# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Who is in a graph, whether they answer, and whether they fit together.

Workers are found as they find each other, through Dynamo's discovery, and asked through their
endpoint `mm_status`.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from pydantic import ValidationError

from dynamo.sglang_mm_resume.config import BLOCK_SIZE, POOL_DEVICE
from dynamo.sglang_mm_resume.core.errors import ResumeError
from dynamo.sglang_mm_resume.doctor.report import Outcome, Result, fail, ok, skip, warn
from dynamo.sglang_mm_resume.transport.rpc import Client
from dynamo.sglang_mm_resume.workers.disagg import DECODE_COMPONENT
from dynamo.sglang_mm_resume.workers.status import STATUS_ENDPOINT, Description

#: Role to the component by which discovery lists it.
COMPONENTS: Final[Mapping[str, str]] = {
    "processor": "processor",
    "encode": "encoder",
    "prefill": "prefill",
    "decode": DECODE_COMPONENT,
}
#: Without one of these a graph answers no picture.
NEEDED: Final = ("processor", "encode", "prefill")
#: Roles that have a pool, and therefore a layout.
WITH_POOL: Final = ("encode", "prefill")

#: Seconds until discovery has named the workers that are needed.
DISCOVERY_S: Final = 5.0
#: Seconds for further ones to be named after the first of each role.
SETTLE_S: Final = 0.5
#: Seconds for a worker to say what it is. One that is busy answers in milliseconds.
ANSWER_S: Final = 5.0
#: Seconds for etcd to answer.
CONNECT_S: Final = 2.0

#: What is compared, and what to do where it differs.
_LAYOUT_ACTIONS: Final = {
    "model": "start all workers with the same --served-model-name",
    "width": "start all workers with the same --model-path",
    "dtype": "start all workers with the same --dtype",
    "block_size": f"start all workers with the same {BLOCK_SIZE.flag} ({BLOCK_SIZE.env})",
}

#: Where nothing is fast between pools on GPUs: over tcp, they take seven times as long.
HOST_POOLS_ACTION: Final = (
    f"host pools: {POOL_DEVICE.flag} cpu ({POOL_DEVICE.env}) on encode and prefill workers"
)


class Undescribed(ResumeError):
    """A worker did not say what it is; the text tells why."""


@dataclass(frozen=True, slots=True)
class Worker:
    """An instance that discovery lists. Without a description, `error` says why."""

    role: str
    instance_id: int
    description: Description | None = None
    error: str = ""
    address: str = ""

    @property
    def label(self) -> str:
        """Its id as logs have it, and where it is: by its own word, or by that of discovery."""
        where = self.address
        if self.description is not None:
            process = self.description.process
            where = f"{process.host}, pid {process.pid}"
        return f"{self.role} {self.instance_id}{f' ({where})' if where else ''}"


@dataclass(frozen=True, slots=True)
class Graph:
    """Everything that serves in one namespace."""

    namespace: str
    workers: Sequence[Worker]
    about: Mapping[str, Client] = field(default_factory=dict)
    """By role, clients of the endpoints that say what a worker is."""

    def of(self, *roles: str) -> list[Worker]:
        """The workers of these roles that have answered."""
        return [w for w in self.workers if w.role in roles and w.description is not None]

    def descriptions(self, *roles: str) -> list[Description]:
        """The same, what they said."""
        return [w.description for w in self.of(*roles) if w.description is not None]


# --- Finding and asking ---


async def discovery(backend: str, environ: Mapping[str, str] = os.environ) -> Result:
    """Can Dynamo's discovery be reached? Asked first, as Dynamo itself waits for it, and long."""
    name = "discovery"
    if backend == "etcd":
        return await _etcd(environ.get("ETCD_ENDPOINTS") or "http://localhost:2379")
    if backend == "file":
        folder = environ.get("DYN_FILE_KV")
        if folder and not Path(folder).is_dir():
            action = "set DYN_FILE_KV as the workers have it, and run on their machine"
            return fail(name, f"there is no folder {folder} (DYN_FILE_KV)", action)
        return ok(name, f"files in {folder or 'the folder that Dynamo chooses'}")
    if backend == "kubernetes":
        if "KUBERNETES_SERVICE_HOST" not in environ:
            return fail(name, "not inside a cluster", "run in a pod: kubectl exec in a worker's")
        return ok(name, "the Kubernetes API of this cluster")
    return fail(
        name,
        f"{backend!r} shows nothing to other processes",
        "set DYN_DISCOVERY_BACKEND as the workers have it: etcd, kubernetes or file",
    )


async def find(runtime: Any, namespace: str) -> Graph:
    """Every worker of `namespace`, asked; what does not answer in time is listed as such."""
    serving, about = {}, {}
    for role, component in COMPONENTS.items():
        prefix = f"{namespace}.{component}"
        serving[role] = await runtime.endpoint(f"{prefix}.generate").client()
        about[role] = await runtime.endpoint(f"{prefix}.{STATUS_ENDPOINT}").client()
    await _listed(*(serving[role] for role in NEEDED))
    asked: list[Awaitable[Worker]] = []
    for role in COMPONENTS:
        addresses = {i.instance_id: i.transport.address for i in serving[role].instances()}
        known = {i.instance_id: i.transport.address for i in about[role].instances()}
        for instance_id, address in sorted((addresses | known).items()):
            client = about[role] if instance_id in known else None
            asked.append(_ask(role, instance_id, address, client))
    return Graph(namespace, await asyncio.gather(*asked), about)


async def describe(client: Client, instance_id: int, limit_s: float = ANSWER_S) -> Description:
    """What a worker says of itself. Raises `Undescribed`."""
    try:
        async with asyncio.timeout(limit_s):
            stream = await client.direct({}, instance_id, annotated=False)
            return Description.model_validate(await anext(aiter(stream)))
    except TimeoutError:
        text = f"no answer in {limit_s:g} s: it hangs, or cannot be reached from here"
        raise Undescribed(text) from None
    except ValidationError as error:
        text = f"its answer cannot be read: {error.errors()[0]['msg']}"
        raise Undescribed(text) from error
    except Exception as error:  # Dynamo's client raises builtin types for lost peers
        raise Undescribed(f"cannot be asked: {error!s:.300}") from error


async def _ask(role: str, instance_id: int, address: str, client: Client | None) -> Worker:
    if client is None:
        error = (
            f"serves no {STATUS_ENDPOINT}: it is about to leave, of another release, or no worker "
            "of this component"
        )
        return Worker(role, instance_id, error=error, address=address)
    try:
        return Worker(role, instance_id, await describe(client, instance_id))
    except Undescribed as error:
        return Worker(role, instance_id, error=str(error), address=address)


async def _listed(*clients: Any) -> None:
    """Until discovery has named an instance of each, or has had its time."""
    waits = [asyncio.ensure_future(client.wait_for_instances()) for client in clients]
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCOVERY_S):
            await asyncio.gather(*waits)
    await asyncio.sleep(SETTLE_S)


async def _etcd(endpoints: str) -> Result:
    problems = []
    for endpoint in endpoints.split(","):
        url = endpoint if "://" in endpoint else f"http://{endpoint}"
        try:
            async with asyncio.timeout(CONNECT_S):
                problem = await _problem_of_etcd(url)
        except (OSError, ValueError, aiohttp.ClientError) as error:  # TimeoutError is an OSError
            problem = str(error) or f"no answer in {CONNECT_S:g} s"
        if not problem:
            return ok("discovery", f"etcd at {endpoint}")
        problems.append(f"{endpoint}: {problem}")
    return fail(
        "discovery",
        f"no etcd can be reached ({'; '.join(problems)})",
        "set ETCD_ENDPOINTS, and DYN_DISCOVERY_BACKEND where it is not etcd, as the workers have "
        "them; or start etcd",
    )


async def _problem_of_etcd(url: str) -> str:
    """Empty if an etcd answers there. With TLS, only whether somebody listens."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        _, writer = await asyncio.open_connection(parts.hostname, parts.port or 2379)
        writer.close()
        return ""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/version") as answer:
        is_etcd = answer.status == 200 and b"etcdserver" in await answer.content.read(1024)
        return "" if is_etcd else f"it is no etcd: it answers {answer.status}"


# --- Judging ---


def checks(graph: Graph) -> list[Result]:
    """All of them."""
    found = [roles(graph), answers(graph)]
    if not graph.of(*COMPONENTS):
        return found
    return [
        *found,
        protocol(graph),
        *(layout(graph, name) for name in _LAYOUT_ACTIONS),
        releases(graph),
        gpu_memory(graph),
    ]


def roles(graph: Graph) -> Result:
    """Is there one worker at least of every role that is needed?"""
    counts = {role: sum(w.role == role for w in graph.workers) for role in COMPONENTS}
    text = ", ".join(f"{count} {role}" for role, count in counts.items() if count) or "nobody"
    missing = [role for role in NEEDED if not counts[role]]
    if not missing:
        return ok("workers", text, **counts)
    if not any(counts.values()):
        action = (
            "start the workers, or name their graph: --namespace (DYN_NAMESPACE), "
            "DYN_DISCOVERY_BACKEND and its variables must be those of the workers"
        )
    else:
        action = f"start a worker of the role {' and '.join(missing)}, or look into its log"
    text = f"namespace {graph.namespace} has {text}: none of the role {', '.join(missing)}"
    return fail("workers", text, action, **counts)


def answers(graph: Graph) -> Result:
    """Does everybody who is listed answer?"""
    silent = [worker for worker in graph.workers if worker.description is None]
    if not graph.workers:
        return skip("answers", "there is nobody to ask")
    if not silent:
        return ok("answers", f"all {len(graph.workers)} say what they are")
    return fail(
        "answers",
        "; ".join(f"{worker.label}: {worker.error}" for worker in silent),
        "look at the process: restart it if it hangs, bring it to this release otherwise; a dead "
        "one leaves discovery within seconds",
        silent=[str(worker.instance_id) for worker in silent],
    )


def protocol(graph: Graph) -> Result:
    """Do all speak the same version of the protocol?"""
    workers = graph.of(*COMPONENTS)
    values = _by_value((w, w.description.protocol_version) for w in workers if w.description)
    action = "run the same release of this component on all workers"
    result = _compared("protocol version", values, action)
    versions = {worker.description.protocol_version for worker in workers if worker.description}
    if result.outcome is Outcome.FAIL and max(versions) - min(versions) == 1:
        return warn(
            result.name, result.text, action, **result.figures
        )  # they understand each other
    return result


def layout(graph: Graph, field: str) -> Result:
    """Do all pools agree on one field of their layout? Other protocols may not have it."""
    layouts = ((w, w.description.layout or {}) for w in graph.of(*WITH_POOL) if w.description)
    values = _by_value((w, fields[field]) for w, fields in layouts if field in fields)
    if not values:
        return skip(_name(field), "no worker with a pool has answered")
    return _compared(_name(field), values, _LAYOUT_ACTIONS[field])


def releases(graph: Graph) -> Result:
    """Do all run the same releases of what matters?"""
    differing = {}
    names = {n for d in graph.descriptions(*COMPONENTS) for n in d.process.versions}
    for name in sorted(names):
        found = {
            d.process.versions[name]
            for d in graph.descriptions(*COMPONENTS)
            if name in d.process.versions
        }
        if len(found) > 1:
            differing[name] = sorted(found)
    if not differing:
        return ok("releases", "the same on all workers")
    text = "; ".join(f"{name}: {' and '.join(found)}" for name, found in differing.items())
    return warn("releases", text, "use one image for all workers", differing=differing)


def gpu_memory(graph: Graph) -> Result:
    """Is there a fast way between the pools on GPUs? RDMA is one; cuda_ipc is, in one PID
    namespace. UCX emulates writes over tcp where there is none, and does not say so.
    """
    name = "GPU memory"
    pairs = [pair for pair in product(graph.of("encode"), graph.of("prefill")) if _on_gpus(*pair)]
    if not pairs:
        return ok(name, "no encode and prefill worker both have their pools on GPUs")
    slow = [(*pair, why) for pair in pairs if (why := _what_is_between(*pair))]
    if not slow:
        return ok(
            name, f"{len(pairs)} pairs of workers can use RDMA, or cuda_ipc", pairs=len(pairs)
        )
    encode, prefill, why = slow[0]
    return warn(
        name,
        f"cuda_ipc cannot work in {len(slow)} of {len(pairs)} pairs of workers, and there is no "
        f"RDMA: about 0.3 GB/s. {encode.label} and {prefill.label}: {why}",
        f"one PID namespace for both (hostPID, shareProcessNamespace, --pid), RDMA, or "
        f"{HOST_POOLS_ACTION}",
        pairs=len(pairs),
        slow=[[str(e.instance_id), str(p.instance_id)] for e, p, _ in slow],
    )


def _on_gpus(*workers: Worker) -> bool:
    return all(w.description is not None and w.description.memory == "VRAM" for w in workers)


def _what_is_between(encode: Worker, prefill: Worker) -> str:
    """What keeps cuda_ipc away where RDMA is not there either; empty: nothing that is known."""
    each = [w.description.process for w in (encode, prefill) if w.description]
    if all(process.rdma_devices for process in each):
        return ""
    boots = {process.boot_id for process in each}
    namespaces = {process.pid_namespace for process in each}
    if "" not in boots and len(boots) > 1:
        return "they run on different machines"
    if "" not in namespaces and len(namespaces) > 1:
        return f"their PID namespaces differ ({' and '.join(sorted(namespaces))})"
    return ""


def _name(field: str) -> str:
    return field.replace("_", " ")


def _by_value(pairs: Iterable[tuple[Worker, Any]]) -> dict[str, list[Worker]]:
    values: defaultdict[str, list[Worker]] = defaultdict(list)
    for worker, value in pairs:
        values[str(value)].append(worker)
    return values


def _compared(name: str, values: Mapping[str, list[Worker]], action: str) -> Result:
    if len(values) == 1:
        (value,) = values
        return ok(name, f"{value} on all {len(values[value])}", value=value)
    text = "; ".join(
        f"{value} on {', '.join(worker.label for worker in workers)}"
        for value, workers in values.items()
    )
    return fail(name, text, action, values=sorted(values))
