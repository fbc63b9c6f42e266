# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""As much of Kubernetes' API as Dynamo's discovery uses, and as much of a kubelet.

A stand-in: no cluster can be had where these tests run. It keeps objects, sends what changes to
those who watch, and lets a worker apply its own DynamoWorkerMetadata. It does not imitate: names
that are taken, conflicts, selectors, rights, time-outs of watches, and versions that are too old.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import httpx
from aiohttp import web

Object = dict[str, Any]

NAMESPACE = "default"
CONTAINER = "main"
_PODS = ("v1", "Pod", "/api/v1/namespaces/default/pods")
_SLICES = (
    *("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
)
_METADATA = (
    *("nvidia.com/v1alpha1", "DynamoWorkerMetadata"),
    "/apis/nvidia.com/v1alpha1/namespaces/default/dynamoworkermetadatas",
)
_PROBE_EVERY_S = 0.2
_PROBE_TIMEOUT_S = 2.0
_DEADLINE_S = 10.0


class _Kind:
    """The objects of one kind, and everything that has happened to them."""

    def __init__(self, api_version: str, kind: str) -> None:
        self.api_version, self.kind = api_version, kind
        self.objects: dict[str, Object] = {}
        self.events: list[Object] = []
        self.changed = asyncio.Condition()

    async def put(self, name: str, content: Object) -> Object:
        """Create or replace."""
        event = "MODIFIED" if name in self.objects else "ADDED"
        metadata = {
            **content.get("metadata", {}),
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-of-{name}",
            "generation": len(self.events) + 1,
            "resourceVersion": str(len(self.events) + 1),
        }
        stored = {**content, "apiVersion": self.api_version, "kind": self.kind}
        self.objects[name] = stored = {**copy.deepcopy(stored), "metadata": metadata}
        await self._tell(event, stored)
        return stored

    async def remove(self, name: str) -> bool:
        """False where there is none of that name."""
        gone = self.objects.pop(name, None)
        if gone is not None:
            await self._tell("DELETED", gone)
        return gone is not None

    async def _tell(self, event: str, subject: Object) -> None:
        async with self.changed:
            self.events.append({"type": event, "object": subject})
            self.changed.notify_all()

    async def after(self, seen: int) -> list[Object]:
        """What has happened after so many events, once there is something."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.events) > seen)
        return self.events[seen:]

    def listed(self) -> Object:
        return {
            "apiVersion": self.api_version,
            "kind": f"{self.kind}List",
            "metadata": {"resourceVersion": str(len(self.events))},
            "items": list(self.objects.values()),
        }


class KubernetesApi:
    """A server on loopback, and pods as a kubelet and the endpoints' controller would show them.
    A context manager.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._url = ""
        self._probing: dict[str, asyncio.Task[None]] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_DEADLINE_S)

    def write_kubeconfig(self, path: Path) -> Path:
        """For KUBECONFIG."""
        named = {"cluster": {"server": self._url}}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", **named}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE},
                }
            ],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    def run(self, pods: Iterable[tuple[str, str]]) -> None:
        """Pods, and where each is asked for its readiness from now on."""
        for name, url in pods:
            self._call(self._run_pod(name, url))

    def delete(self, pod: str) -> None:
        """What `kubectl delete` does before the pod gets SIGTERM: it counts as terminating, and is
        no ready endpoint of a service any more. Its containers are what they are.
        """
        self._call(self._delete(pod))

    def ready(self, pod: str) -> bool:
        """What the readiness probe of its container says."""
        return self._call(self._ready(pod))

    # --- On the loop ---

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE_S)

    async def _start(self) -> None:
        app = web.Application()
        self._kinds = {
            path: _Kind(version, kind) for version, kind, path in (_PODS, _SLICES, _METADATA)
        }
        for path, kind in self._kinds.items():
            app.router.add_get(path, self._lister(kind))
            app.router.add_patch(path + "/{name}", self._applier(kind))
            app.router.add_delete(path + "/{name}", self._deleter(kind))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{host}:{port}"

    async def _stop(self) -> None:
        for task in self._probing.values():
            task.cancel()
        await self._runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _lister(self, kind: _Kind) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            if request.query.get("watch") not in ("true", "1"):
                return web.json_response(kind.listed())
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(request)
            seen = int(request.query.get("resourceVersion") or 0)
            while True:
                for event in await kind.after(seen):
                    await response.write(json.dumps(event).encode() + b"\n")
                    seen += 1

        return answer

    def _applier(self, kind: _Kind) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            content = json.loads(await request.read())  # JSON is YAML, and is what Dynamo sends
            return web.json_response(await kind.put(request.match_info["name"], content))

        return answer

    def _deleter(self, kind: _Kind) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            gone = await kind.remove(request.match_info["name"])
            outcome = "Success" if gone else "NotFound"
            body = {
                "apiVersion": "v1",
                "kind": "Status",
                "status": "Success" if gone else "Failure",
                "reason": outcome,
                "message": outcome,
                "code": 200 if gone else 404,
            }
            return web.json_response(body, status=body["code"])

        return answer

    async def _run_pod(self, name: str, url: str) -> None:
        await self._kinds[_PODS[2]].remove(name)  # one of that name that was deleted
        await self._show(name, ready=False)
        if name not in self._probing:
            self._probing[name] = asyncio.ensure_future(self._probe(name, url))

    async def _probe(self, name: str, url: str) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=_PROBE_TIMEOUT_S) as client:
            while True:
                try:
                    ready = (await client.get(f"{url}/health")).status_code == 200
                except httpx.HTTPError:
                    ready = False
                if ready != await self._ready(name):
                    await self._show(name, ready=ready)
                await asyncio.sleep(_PROBE_EVERY_S)

    async def _ready(self, name: str) -> bool:
        (status,) = self._kinds[_PODS[2]].objects[name]["status"]["containerStatuses"]
        return bool(status["ready"])

    async def _delete(self, name: str) -> None:
        metadata = self._kinds[_PODS[2]].objects[name]["metadata"]
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._show(name, ready=await self._ready(name))

    async def _show(self, name: str, ready: bool) -> None:
        pods, slices = self._kinds[_PODS[2]], self._kinds[_SLICES[2]]
        known = pods.objects.get(name, {}).get("metadata", {})
        labels = {"nvidia.com/dynamo-discovery-enabled": "true"}
        status = {"name": CONTAINER, "ready": ready, "image": "", "imageID": "", "restartCount": 0}
        await pods.put(
            name,
            {
                "metadata": {**known, "labels": labels},
                "spec": {"containers": [{"name": CONTAINER}]},
                "status": {"phase": "Running", "containerStatuses": [status]},
            },
        )
        terminating = "deletionTimestamp" in known
        endpoint = {
            "addresses": ["127.0.0.1"],
            "conditions": {
                "ready": ready and not terminating,
                "serving": ready,
                "terminating": terminating,
            },
            "targetRef": {"kind": "Pod", "name": name, "uid": f"uid-of-{name}"},
        }
        await slices.put(
            f"slice-of-{name}",
            {
                "metadata": {"labels": labels},
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": [],
            },
        )
