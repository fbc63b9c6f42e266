# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`workers/presence.py`: what discovery loses is put back, unless it is meant to be away."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.workers import presence
from dynamo.sglang_mm_resume.workers.lifecycle import DrainFirst
from dynamo.sglang_mm_resume.workers.presence import LOOKS, STOOD_STILL_S, Presence
from tests.support.discovery import entries
from tests.support.worker_status import wait_until

ROOT = Path(__file__).parents[2]
DEADLINE_S = 5.0
PROCESS_DEADLINE_S = 60.0
INSTANCE = 7


class FakeEndpoint:
    """An endpoint, its client, and what discovery lists of it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name = name
        self.events = events
        self.listed = True
        self.has_effect = True
        self.error: Exception | None = None
        self.looks = 0
        self.on_look: Callable[[FakeEndpoint], None] = lambda _: None

    def connection_id(self) -> int:
        return INSTANCE

    async def client(self) -> FakeEndpoint:
        return self

    def instance_ids(self) -> list[int]:
        self.looks += 1
        self.on_look(self)
        return [INSTANCE] if self.listed else [INSTANCE + 1]

    async def register_endpoint_instance(self) -> None:
        self.events.append(f"register {self.name}")
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.listed = self.has_effect

    async def unregister_endpoint_instance(self) -> None:
        self.events.append(f"unregister {self.name}")
        self.listed = False


class Side:
    """A worker with two endpoints, and everything that it does."""

    def __init__(self, backend: str = "file") -> None:
        self.events: list[str] = []
        self.generate = FakeEndpoint("generate", self.events)
        self.control = FakeEndpoint("control", self.events)
        self.presence = Presence(self.generate, self.control, backend=backend, look_every_s=0.0)

    @property
    def count(self) -> int:
        return self.presence.totals.reregistrations

    async def register(self) -> None:
        self.events.append("ready")

    async def list_model(self) -> None:
        self.events.append("card")

    async def keep(self) -> None:
        await self.presence.keep(self.register, self.list_model)

    async def looked(self, times: int = 5 * LOOKS) -> None:
        enough = self.control.looks + times
        await until(lambda: self.control.looks >= enough)


@pytest.fixture
def side() -> Side:
    return Side()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


async def while_keeping(side: Side, work: Callable[[], Awaitable[None]]) -> None:
    keeping = asyncio.ensure_future(side.keep())
    try:
        await work()
        assert not keeping.done(), keeping
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


@pytest.mark.parametrize("which", ["generate", "control"])
async def test_what_is_lost_is_put_back_endpoints_first_and_once(
    side: Side, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        await side.looked()
        assert side.events == ["ready"]
        getattr(side, which).listed = False
        await until(lambda: side.count == 1)
        await side.looked()

    caplog.set_level(logging.WARNING)
    await while_keeping(side, work)
    assert side.events == ["ready", "register generate", "register control", "card"]
    (line,) = caplog.messages
    assert line.endswith("registered again")


async def test_a_watch_that_is_slow_once_is_not_mistaken(side: Side) -> None:
    def flicker(endpoint: FakeEndpoint) -> None:
        endpoint.listed = endpoint.looks % LOOKS != 0

    side.generate.on_look = flicker
    await while_keeping(side, side.looked)
    assert side.events == ["ready"]


async def test_everything_is_registered_again_after_it_stood_still(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card may have been lost alone, and nobody can look it up."""
    now = [1000.0]
    monkeypatch.setattr(presence.time, "time", lambda: now[0])

    async def work() -> None:
        await side.looked()
        now[0] += STOOD_STILL_S / 2
        await side.looked()
        assert side.events == ["ready"], "a busy machine"
        now[0] += 2 * STOOD_STILL_S
        await until(lambda: side.count == 1)
        await side.looked()

    await while_keeping(side, work)
    assert side.events == ["ready", "register generate", "register control", "card"]


async def test_nothing_is_put_back_before_the_first_registration(side: Side) -> None:
    registered = asyncio.Event()
    side.generate.listed = False

    async def register() -> None:
        await registered.wait()
        side.events.append("ready")

    side.register = register  # type: ignore[method-assign]

    async def work() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        assert side.events == []
        assert not side.generate.looks
        registered.set()
        await until(lambda: side.count == 1)

    await while_keeping(side, work)


async def test_a_worker_that_leaves_stays_away(side: Side) -> None:
    async def drained() -> None:
        side.events.append("drained")

    async def work() -> None:
        await side.looked()
        await DrainFirst(drained, side.presence.listings).unregister_endpoint_instance()
        await side.looked()

    await while_keeping(side, work)
    assert side.events == ["ready", "drained", "unregister generate", "unregister control"]


async def test_leaving_wins_over_registering_again(side: Side) -> None:
    """Whatever was under way when it began to leave."""
    side.generate.listed = False

    async def work() -> None:
        await until(lambda: "register generate" in side.events)
        await asyncio.gather(
            *(each.unregister_endpoint_instance() for each in side.presence.listings)
        )
        await side.looked()

    await while_keeping(side, work)
    assert not side.generate.listed
    assert not side.control.listed


async def test_an_engine_that_is_paused_stays_away_until_it_goes_on(side: Side) -> None:
    generate, _ = side.presence.listings

    async def work() -> None:
        await generate.unregister_endpoint_instance()
        await side.looked()
        assert not side.generate.listed
        side.control.listed = False  # a hang on top of it
        await until(lambda: side.count == 1)
        assert not side.generate.listed
        await generate.register_endpoint_instance()
        side.generate.listed = False
        await until(lambda: side.count == 2)

    await while_keeping(side, work)


async def test_registering_is_tried_again(side: Side) -> None:
    side.generate.listed = False
    side.generate.error = OSError("no space left")

    async def work() -> None:
        await until(lambda: side.events.count("register generate") == 2)
        side.generate.error = None
        await until(lambda: side.count == 1)

    await while_keeping(side, work)
    assert side.events[-1] == "card"


@pytest.mark.parametrize("error", [OSError("no space left"), None], ids=["fails", "no-effect"])
async def test_a_worker_that_cannot_come_back_ends(side: Side, error: Exception | None) -> None:
    side.generate.listed = side.generate.has_effect = False
    side.generate.error = error
    with pytest.raises(RuntimeError, match="does not list this worker"):
        await asyncio.wait_for(side.keep(), DEADLINE_S)
    assert "card" not in side.events


async def test_a_card_that_is_refused_ends_the_worker(side: Side) -> None:
    """Dynamo has shut the engine down then."""

    async def list_model() -> None:
        raise RuntimeError("Model registration failed")

    side.generate.listed = False
    side.list_model = list_model  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="Model registration failed"):
        await asyncio.wait_for(side.keep(), DEADLINE_S)


def test_its_totals_are_among_those_of_the_worker(side: Side) -> None:
    side.presence.totals.reregistrations = 3
    assert side.presence.counted(lambda: {"role": "encode", "totals": {"chunks": 2}})() == {
        "role": "encode",
        "totals": {"chunks": 2, "reregistrations": 3},
    }
    assert side.presence.counted(dict)() == {"totals": {"reregistrations": 3}}


async def test_a_pod_that_kubernetes_does_not_list_has_lost_nothing() -> None:
    """It is not ready yet, or shuts down: nothing is to be put back, and it must not end."""
    side = Side(backend="kubernetes")
    side.generate.listed = side.generate.has_effect = False
    await asyncio.wait_for(side.keep(), DEADLINE_S)
    assert side.events == ["ready"]
    assert not side.generate.looks


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the real runtime, listed in the test's own folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.present_worker"],
        env={**os.environ, "DYN_FILE_KV": str(tmp_path)},
        cwd=ROOT,
    )
    try:
        assert wait_until(lambda: bool(entries(tmp_path)), PROCESS_DEADLINE_S)
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_real_entry_comes_back_and_is_kept_alive(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (path,) = entries(tmp_path)
    path.unlink()
    assert wait_until(path.exists, PROCESS_DEADLINE_S)
    written_at = path.stat().st_mtime
    assert wait_until(lambda: path.stat().st_mtime > written_at, PROCESS_DEADLINE_S)
    assert process.poll() is None


def test_a_real_worker_that_cannot_come_back_ends_with_an_error(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "v1")
    assert process.wait(PROCESS_DEADLINE_S) == 1
