# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/lifecycle.py`: serving ends with its endpoints, a request's work with the request."""

import asyncio
import sys

import pytest

from dynamo.sglang_mm_resume.args import BadArgument, exit_on_bad_argument
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.errors import RETRYABLE, Reason, Refused
from dynamo.sglang_mm_resume.workers import run as run_module
from dynamo.sglang_mm_resume.workers.lifecycle import (
    Admission,
    DrainFirst,
    RequestStopped,
    WorkerLost,
    argument_errors,
    serve,
    until_stopped,
    wait_for_role,
)
from dynamo.sglang_mm_resume.workers.role import run_role

DEADLINE_S = 5.0


class FakeContext:
    """A request's context that can be stopped by hand."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()

    def is_stopped(self) -> bool:
        return self.stop.is_set()

    def async_killed_or_stopped(self) -> "asyncio.Future[bool]":
        return asyncio.ensure_future(self.stop.wait())


class NobodyThere:
    """A client whose role never appears."""

    async def wait_for_instances(self) -> None:
        await asyncio.Event().wait()


async def test_a_worker_that_is_stopped_before_its_peers_appear_ends() -> None:
    shutdown, stopped = asyncio.Event(), asyncio.Event()
    registering = wait_for_role(NobodyThere(), "a role")
    serving = asyncio.ensure_future(serve([stopped.wait()], registering, shutdown))
    await asyncio.sleep(0)
    shutdown.set()
    stopped.set()
    await asyncio.wait_for(serving, DEADLINE_S)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_worker_that_serves_on_after_it_is_registered_ends_with_a_shutdown() -> None:
    shutdown, stopped = asyncio.Event(), asyncio.Event()
    registered = asyncio.Event()

    async def register() -> None:
        registered.set()

    serving = asyncio.ensure_future(serve([stopped.wait()], register(), shutdown))
    await asyncio.wait_for(registered.wait(), DEADLINE_S)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not serving.done()
    shutdown.set()
    stopped.set()
    await asyncio.wait_for(serving, DEADLINE_S)


@pytest.mark.parametrize("is_registered", [True, False])
async def test_endpoints_that_stop_by_themselves_are_an_error(is_registered: bool) -> None:
    """As Dynamo's do when it has lost its lease in etcd."""

    async def registration() -> None:
        await (asyncio.sleep(0) if is_registered else asyncio.Event().wait())

    with pytest.raises(WorkerLost, match="lease in discovery is lost"):
        await serve([asyncio.sleep(0.01)], registration(), asyncio.Event())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_registration_that_fails_ends_the_worker() -> None:
    async def fails() -> None:
        raise RuntimeError("refused by the frontend")

    with pytest.raises(RuntimeError, match="refused by the frontend"):
        serving = serve([asyncio.Event().wait()], fails(), asyncio.Event())
        await asyncio.wait_for(serving, DEADLINE_S)


async def test_work_ends_with_its_request() -> None:
    context = FakeContext()
    cleaned_up = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    working = asyncio.ensure_future(until_stopped(context, work()))
    await asyncio.sleep(0)
    context.stop.set()
    with pytest.raises(RequestStopped):
        await asyncio.wait_for(working, DEADLINE_S)
    assert cleaned_up.is_set()


async def test_work_that_ends_first_gives_its_result() -> None:
    async def work() -> int:
        return 7

    assert await until_stopped(FakeContext(), work()) == 7


def test_upstream_s_complaints_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_bad_argument(), argument_errors():
        raise ValueError("--tp-size must divide 8")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --tp-size must divide 8\n"


async def test_endpoints_leave_discovery_after_the_work_has_ended() -> None:
    events: list[str] = []

    class Endpoint:
        async def unregister_endpoint_instance(self) -> None:
            events.append("left")

    async def drain() -> None:
        await asyncio.sleep(0)
        events.append("drained")

    await DrainFirst(drain, [Endpoint(), Endpoint()]).unregister_endpoint_instance()
    assert events == ["drained", "left", "left"]


async def test_a_worker_that_leaves_accepts_nothing_and_finishes_what_it_has_begun() -> None:
    admission = Admission()
    await asyncio.wait_for(admission.idle(), DEADLINE_S)
    with admission.work():
        admission.require_open()
        admission.leave()
        with pytest.raises(Refused, match="shuts down") as caught:
            admission.require_open()
        idle = asyncio.ensure_future(admission.idle())
        await asyncio.sleep(0)
        assert not idle.done()
    await asyncio.wait_for(idle, DEADLINE_S)
    assert caught.value.reason is Reason.DRAINING
    assert Reason.DRAINING in RETRYABLE, "another worker will do it"


def test_a_bad_argument_that_a_worker_finds_ends_it_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a pool that does not fit: a supervisor must not start it again and again."""

    async def worker(settings: Settings, rest: list[str]) -> None:
        raise BadArgument("a pool of 8 MiB does not fit")

    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setattr(run_module, "configure_dynamo_logging", lambda: None)
    with pytest.raises(SystemExit) as ended:
        run_module.run("worker", worker, lambda: None)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a pool of 8 MiB does not fit\n"


def test_no_role_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dynamo.sglang_mm_resume", "--role", "cook"])
    with pytest.raises(SystemExit) as ended:
        run_role()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --role: 'cook' is none of encode,")


def test_a_worker_that_is_lost_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def worker(settings: Settings, rest: list[str]) -> None:
        raise WorkerLost("the lease is gone")

    monkeypatch.setattr(sys, "argv", ["worker"])
    monkeypatch.setattr(run_module, "configure_dynamo_logging", lambda: None)
    with pytest.raises(SystemExit) as ended:
        run_module.run("worker", worker, lambda: None)
    assert ended.value.code == 1
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage() == "the lease is gone"
    assert record.exc_info is None
