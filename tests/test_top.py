# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""`top`: what it makes of statuses, how it draws them, and workers that do not answer.

Statuses are made by the classes that workers make theirs of: a pool, a receiver, their totals.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from rich.console import Console

from dynamo.sglang_mm_resume.core.blocks import BlockPool
from dynamo.sglang_mm_resume.core.errors import Reason
from dynamo.sglang_mm_resume.core.histogram import SECONDS, Histogram
from dynamo.sglang_mm_resume.core.receiver import Oddity
from dynamo.sglang_mm_resume.top import command
from dynamo.sglang_mm_resume.top.collect import MAX_BYTES, Answer, SystemPorts
from dynamo.sglang_mm_resume.top.model import WINDOW_S, History, Values, View
from dynamo.sglang_mm_resume.top.render import MAP_CELLS, cells, draw
from dynamo.sglang_mm_resume.transport.assembler import Totals
from dynamo.sglang_mm_resume.transport.rpc import ProbeTotals
from dynamo.sglang_mm_resume.transport.writer import WriterTotals
from dynamo.sglang_mm_resume.workers.hand_off import HandOffTotals
from dynamo.sglang_mm_resume.workers.processor import ProcessorTotals

Status = dict[str, Any]

LIMIT_S = 1.0
#: Far beyond the limit, for a loaded machine.
DEADLINE_S = 10.0
#: For a process that imports Dynamo.
START_DEADLINE_S = 60.0

ENTER_SCREEN, LEAVE_SCREEN = b"\x1b[?1049h", b"\x1b[?1049l"


def pool(num_blocks: int = 64) -> BlockPool:
    return BlockPool(num_blocks, block_size=16, default_blocks=8)


def prefill(blocks: BlockPool | None = None, **more: Any) -> Status:
    """A prefill worker's status. `more`: what is beside the pool, or among its `totals`."""
    totals = Totals()
    status: Status = {
        "role": "prefill",
        "namespace": "graph",
        "pool": asdict((blocks or pool()).stats()),
        "transfers": {},
        "waiting": 0,
        "engine_requests": 0,
        "assembled_tokens": 0,
        "refusals": {},
        "oddities": {},
    }
    status |= {key: more.pop(key) for key in list(more) if key in status or key == "progress"}
    for key, value in more.items():
        setattr(totals, key, value)
    found = {**asdict(totals), "peer_probes": {"encode": asdict(ProbeTotals())}}
    return {**status, "totals": {**found, "reasons": dict(totals.reasons)}}


def encode(**totals: Any) -> Status:
    found = WriterTotals()
    for key, value in totals.items():
        setattr(found, key, value)
    return {
        "role": "encode",
        "pool": {**asdict(pool().stats()), "cached": 0},
        "transfers": {},
        "encodes_waiting": 2,
        "writes_in_flight": 1,
        "refusals": {},
        "totals": {**asdict(found), "cache_hits": 0, "cache_misses": 0},
    }


def processor(**totals: Any) -> Status:
    found = ProcessorTotals()
    for key, value in totals.items():
        setattr(found, key, value)
    return {
        "role": "processor",
        "requests": 3,
        "items_waiting": {"encode": 1, "prefill": 0},
        "totals": {**asdict(HandOffTotals()), **asdict(found), "peer_probes": {}},
    }


def waits(*seconds: float) -> dict[str, Histogram]:
    """Waits for blocks, as a worker counts them."""
    histogram = Histogram(SECONDS)
    for value in seconds:
        histogram.observe(value)
    return {"reserve": histogram, "resume": Histogram(SECONDS)}


def seen(*looks: tuple[float, dict[str, Any]]) -> View:
    """What is shown after these looks: their time, and each worker's status or error."""
    history = History()
    for now, workers in looks:
        answers = [
            Answer(name, error=said) if isinstance(said, str) else Answer(name, said)
            for name, said in workers.items()
        ]
        history.add(answers, now)
    return history.view(looks[-1][0])


def drawn(view: View, max_transfers: int = 8, colours: Literal["standard"] | None = None) -> str:
    console = Console(width=110, color_system=colours, force_terminal=colours is not None)
    with console.capture() as captured:
        console.print(draw(view, "12:00:00", max_transfers))
    return captured.get()


# --- Understanding ---


def test_rates_are_those_between_the_first_look_and_the_last() -> None:
    view = seen(
        (10.0, {"e": encode(bytes_written=1000)}), (12.0, {"e": encode(bytes_written=7000)})
    )
    (worker,) = view.workers
    assert worker.per_s == {"bytes written": 3000.0}
    assert worker.under_way == {"transfers": 0, "writes": 1}
    assert worker.waiting == {"tower": 2}
    assert view.window_s == 2.0


def test_what_is_older_than_the_window_does_not_count() -> None:
    looks = [(float(t), {"p": processor(requests=int(t > 0))}) for t in (0, 1, WINDOW_S + 2)]
    assert seen(*looks).workers[0].per_s == {"requests": 0.0}
    assert seen(*looks[:2]).workers[0].per_s == {"requests": 1.0}


def test_a_worker_that_begins_anew_has_no_negative_rates() -> None:
    view = seen((0.0, {"p": processor(requests=50)}), (2.0, {"p": processor(requests=3)}))
    assert view.workers[0].per_s == {"requests": 0.0}
    assert view.workers[0].recent_failures == {}


def test_the_three_objectives() -> None:
    blocks = pool()
    blocks.quarantine(lease := blocks.alloc(16 * 32, "a") or pytest.fail("no blocks"))
    early = [5.0] * 10
    before = prefill(
        embeddings_assembled=10, embeddings_resumed=1, buffer_wait_seconds=waits(*early)
    )
    after = prefill(
        blocks,
        embeddings_assembled=20,
        embeddings_resumed=6,
        buffer_wait_seconds=waits(*early, *[0.001] * 90, *[0.02] * 10),
    )
    full = encode()
    full["pool"] |= {"peak_used": 64}  # a cache fills it, and makes room
    view = seen((0.0, {"p": before}), (5.0, {"p": after, "e": full}))
    assert (view.resume_rate.recent, view.resume_rate.since_start) == (0.5, 0.3)
    assert view.wait_p99_s.recent == pytest.approx(0.01 + 0.015 * 9 / 10)
    assert view.wait_p99_s.since_start == pytest.approx(5.0, rel=0.1)
    assert view.pool_use.recent == len(lease.blocks) / 64
    assert view.pool_use.since_start == len(lease.blocks) / 64


def test_without_events_there_is_nothing_to_judge_by() -> None:
    view = seen((0.0, {"p": prefill()}))
    assert view.resume_rate.recent is None
    assert view.wait_p99_s.since_start is None
    assert view.pool_use.recent == 0.0


@pytest.mark.parametrize(
    ("share", "value"), [(0.5, 1.0), (0.75, 1.5), (1.0, 2.0), (0.25, 0.5), (0.01, 0.02)]
)
def test_quantiles_are_those_of_promql(share: float, value: float) -> None:
    assert Values(bounds=(1.0, 2.0), counts=(2, 2, 0)).quantile(share) == pytest.approx(value)


def test_a_quantile_beyond_all_bounds_is_the_last_of_them() -> None:
    assert Values(bounds=(1.0, 2.0), counts=(0, 0, 5)).quantile(0.5) == 2.0


def test_transfers_have_rounds_and_rates() -> None:
    def at(tokens: int, age_s: float) -> Status:
        progress = {"rounds": 2, "tokens": tokens, "total_tokens": 1600, "age_s": age_s}
        states = {"a": "receiving", "b": "waiting"}
        return prefill(transfers=states, progress={"a": progress})

    view = seen((0.0, {"p": at(200, 1.0)}), (2.0, {"p": at(1000, 3.0)}))
    a, b = view.workers[0].transfers
    assert (a.id, a.rounds, a.tokens, a.tokens_per_s) == ("a", 2, 1000, 400.0)
    assert (b.id, b.rounds, b.tokens_per_s) == ("b", None, None)
    first = seen((0.0, {"p": at(200, 1.0)})).workers[0].transfers[0]
    assert first.tokens_per_s == 200.0  # since it began


def test_failures_of_all_kinds_are_counted_and_new_ones_apart() -> None:
    def at(count: int) -> dict[str, Status]:
        probes = {"encode": {"answered": 5, "failed": count}}
        worker = prefill(
            reasons={Reason.FAILED: count},
            malformed_notices=count,
            oddities={Oddity.LATE: count},
            refusals={Reason.LAYOUT: count},
        )
        worker["totals"]["peer_probes"] = probes
        return {
            "p": worker,
            "x": processor(errors={Reason.OVERLOADED: count}, prefill_retries=count),
            "e": encode(write_failures=count),
        }

    view = seen((0.0, at(2)), (1.0, at(3)))
    failures = {worker.role: set(worker.failures) for worker in view.workers}
    assert failures == {
        "processor": {"error:overloaded", "prefill_retries"},
        "encode": {"write_failures"},
        "prefill": {
            *("transfer:failed", "malformed_notices", "oddity:late"),
            *("refusal:layout", "probe:encode"),
        },
    }
    for worker in view.workers:
        assert set(worker.failures.values()) == {3}
        assert set(worker.recent_failures.values()) == {1}


def test_a_silent_worker_keeps_what_it_said_last() -> None:
    view = seen((0.0, {"e": encode()}), (7.0, {"e": "no answer in 2 s"}))
    (worker,) = view.workers
    assert (worker.error, worker.silent_s, worker.role) == ("no answer in 2 s", 7.0, "encode")
    assert not view.complete


def test_a_worker_that_left_is_not_shown() -> None:
    view = seen((0.0, {"a": encode(), "b": encode()}), (1.0, {"b": encode()}))
    assert [worker.name for worker in view.workers] == ["b"]
    assert view.complete


def test_nobody_is_not_complete() -> None:
    assert not seen((0.0, {})).complete


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ([1, 2], "all of it"),
        ({"pool": {}}, "role"),
        ({"role": "prefill", "pool": {"free": -1}}, "pool.free"),
        ({"role": "prefill", "totals": {"requests": "many"}}, "totals.requests"),
        (
            {
                "role": "p",
                "totals": {"buffer_wait_seconds": {"reserve": {"bounds": [1], "counts": [1]}}},
            },
            "totals.buffer_wait_seconds.reserve",
        ),
    ],
)
def test_an_answer_that_is_none_is_named(said: Any, complaint: str) -> None:
    (worker,) = seen((0.0, {"a": said})).workers
    assert worker.error is not None
    assert worker.error.startswith(f"its answer is not a worker's: {complaint}")


def test_workers_come_in_the_order_of_a_request() -> None:
    decode = {"role": "decode", "engine_requests": 1}
    view = seen(
        (0.0, {"d": decode, "p": prefill(), "b": encode(), "a": encode(), "x": processor()})
    )
    assert [worker.name for worker in view.workers] == ["x", "a", "b", "p", "d"]


# --- Drawing ---


@pytest.mark.parametrize(
    ("counts", "width", "found"),
    [
        ((0, 0, 0, 512), 64, [0, 0, 0, 64]),
        ((8, 0, 0, 504), 64, [1, 0, 0, 63]),
        ((1, 1, 1, 509), 64, [1, 1, 1, 61]),
        ((256, 128, 0, 128), 64, [32, 16, 0, 16]),
        ((3, 0, 0, 5), 64, [3, 0, 0, 5]),
        ((509, 1, 1, 1), 64, [61, 1, 1, 1]),
        ((1000, 0, 0, 1), 64, [63, 0, 0, 1]),
    ],
)
def test_every_state_that_has_a_block_has_a_cell(
    counts: tuple[int, ...], width: int, found: list[int]
) -> None:
    assert cells(counts, width) == found


def test_a_frame_says_it_all_without_colours() -> None:
    blocks = pool(512)
    held = blocks.alloc(16 * 64, "a")
    lost = blocks.alloc(16 * 8, "b")
    assert held and lost
    blocks.quarantine(lost)
    progress = {"rounds": 3, "tokens": 1024, "total_tokens": 4000, "age_s": 2.5}
    before = prefill(blocks, transfers={"abc": "receiving"}, progress={"abc": progress})
    after = prefill(
        blocks,
        transfers={"abc": "receiving"},
        progress={"abc": {**progress, "tokens": 2048, "age_s": 4.5}},
        waiting=4,
        embeddings_assembled=4,
        embeddings_resumed=3,
        buffer_wait_seconds=waits(0.2),
        reasons={Reason.TIMEOUT: 2},
    )
    lines = drawn(
        seen((0.0, {"10.0.0.1:9090": before}), (2.0, {"10.0.0.1:9090": after}))
    ).splitlines()
    text = "\n".join(lines)
    assert "graph  1 worker" in text
    assert ["resume", "rate", "25", "%", "75", "%", "75", "%"] in [line.split() for line in lines]
    (bar,) = [line for line in lines if "in use" in line]
    assert bar.count("█") == MAP_CELLS * 64 // 512
    assert bar.count("!") == 1
    assert "14 % of 512 in use" in bar
    assert "64 held" in text and "8 quarantined" in text
    (row,) = [line for line in lines if "abc" in line]
    assert row.split() == ["abc", "receiving", "3", "2,048", "of", "4,000", "512", "4.5", "s"]
    assert "4 waiting for blocks" in text
    assert "transfer:timeout 2 (+2)" in text


def test_an_objective_that_is_missed_is_red() -> None:
    missed = seen((0.0, {"p": prefill(embeddings_assembled=4, embeddings_resumed=1)}))
    met = seen((0.0, {"p": prefill(embeddings_assembled=5, embeddings_resumed=1)}))
    assert "\x1b[1;31m25 %" in drawn(missed, colours="standard")
    assert "\x1b[32m20 %" in drawn(met, colours="standard")


def test_a_worker_that_never_answered_is_shown_as_such() -> None:
    text = drawn(seen((0.0, {"10.0.0.9:1": "cannot be reached: refused", "e": encode()})))
    assert "1 without an answer" in text
    assert "cannot be reached: refused" in text


def test_rates_have_units() -> None:
    text = drawn(seen((0.0, {"e": encode()}), (2.0, {"e": encode(bytes_written=5_000_000)})))
    assert " · 2.5 MB written/s · " in text
    text = drawn(seen((0.0, {"x": processor()}), (2.0, {"x": processor(requests=5)})))
    assert " · 2.5 requests/s · " in text


def test_old_figures_are_said_to_be_old() -> None:
    text = drawn(seen((0.0, {"e": encode()}), (90.0, {"e": "no answer in 2 s"})))
    assert "no answer in 2 s; what follows is 90.0 s old" in text


def test_an_empty_graph_is_named() -> None:
    assert "no worker is listed" in drawn(seen((0.0, {})))


def test_only_so_many_transfers_are_listed() -> None:
    states = {f"t{i:03}": "waiting" for i in range(20)}
    text = drawn(seen((0.0, {"p": prefill(transfers=states)})), max_transfers=3)
    assert "and 17 more" in text
    assert text.count(" waiting ") == 3


def test_nothing_that_a_worker_says_steers_the_terminal() -> None:
    worker = prefill(transfers={"\x1b[2Jevil": "wait\ning"})
    worker["namespace"] = "g\x1b]0;title\x07"
    text = drawn(seen((0.0, {"a\x1b[31m": worker, "b": "error\x1b[1m"})))
    assert "\x1b" not in text and "\x07" not in text
    assert "?[2Jevil" in text


# --- Asking ---


@asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Any] | None = None,
) -> AsyncIterator[str]:
    """A server on loopback that answers every path; its URL."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert answer is not None
        found = answer(request)
        return await found if asyncio.iscoroutine(found) else found

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def asked(*urls: str, limit_s: float = DEADLINE_S) -> list[Answer]:
    source = SystemPorts(urls, limit_s)
    try:
        async with asyncio.timeout(2 * DEADLINE_S):
            return list(await source.look())
    finally:
        await source.close()


async def test_the_status_of_a_system_port_is_asked_for() -> None:
    paths = []

    def answer(request: web.Request) -> web.Response:
        paths.append((request.method, request.path))
        return web.json_response({"role": "encode"})

    async with serving(answer) as url:
        (found,) = await asked(url)
    assert found == Answer(url.removeprefix("http://"), {"role": "encode"})
    assert paths == [("POST", "/engine/mm_resume/status")]


async def test_one_that_hangs_holds_nobody_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hanging = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with serving(lambda _: web.json_response({"role": "encode"})) as url:
            first, second = await asked(hanging, url, limit_s=LIMIT_S)
    assert first.error == f"no answer in {LIMIT_S:g} s"
    assert second.said == {"role": "encode"}


async def test_a_port_that_is_closed() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (found,) = await asked(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert found.error.startswith("cannot be reached: ")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (lambda: web.Response(status=404), "not the system port of a worker"),
        (lambda: web.Response(status=503), "it answers 503"),
        (lambda: web.Response(text="<html>"), "its answer cannot be read"),
        (lambda: web.Response(body=b" " * (MAX_BYTES + 1)), "its answer cannot be read: more than"),
    ],
)
async def test_an_answer_of_somebody_else(response: Callable[[], web.Response], error: str) -> None:
    async with serving(lambda _: response()) as url:
        (found,) = await asked(url)
    assert found.error.startswith(error)


# --- The command line ---


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses these arguments."""
    with pytest.raises(SystemExit) as outcome:
        command.main(arguments)
    assert outcome.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--url", "ftp://host:1"), "http:// or https:// is expected"),
        (("--url", "host"), "host and port are expected"),
        (("--url", "host:1,"), "host and port are expected"),
        (("--url", "host:1", "--interval", "0"), "0 is not between 0.2 and 3600"),
        (("--url", "host:1", "--timeout", "nan"), "nan is not between 0.1 and 60"),
        (("--url", "host:1", "--transfers", "x"), "'x' is not a number"),
        (("--url", "host:1", "--namespace", "n"), "with --url, --namespace has no meaning"),
        (("--url", "host:1"), "standard output is no terminal: use --once or --json"),
        (("--no-such-flag",), "--no-such-flag"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in refused(*arguments, capsys=capsys)


def test_without_rich_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    complaint = refused("--url", "host:1", "--once", capsys=capsys)
    assert "pip install 'dynamo-sglang-mm-resume[top]', or use --json" in complaint


def test_discovery_that_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "none"
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", "file")
    monkeypatch.setenv("DYN_FILE_KV", str(folder))
    assert command.main(["--once", "--json"]) == command.NOT_FOUND
    assert f"there is no folder {folder} (DYN_FILE_KV)" in capsys.readouterr().err


def test_once_prints_one_frame_and_says_by_its_exit_code_who_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        arguments = ["--once", "--interval", "0.2", "--url", address]
        assert command.main(arguments) == command.INCOMPLETE
        frame = capsys.readouterr().out
        assert command.main([*arguments, "--json"]) == command.INCOMPLETE
    assert f"{address}" in frame and "1 without an answer" in frame
    document = json.loads(capsys.readouterr().out)
    assert [worker["name"] for worker in document["workers"]] == [address]
    assert document["version"] == 1
    assert document["workers"][0]["error"].startswith("cannot be reached")


# --- As a process ---


@pytest.fixture
def closed_port() -> Iterator[str]:
    """An address on which nobody answers, and nobody else will."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{closed.getsockname()[1]}"


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command_line = [sys.executable, "-m", "dynamo.sglang_mm_resume.top", *arguments]
    with subprocess.Popen(
        command_line,
        stdin=subprocess.DEVNULL,
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Its two ends: ours, and that of the program."""
    ends = pty.openpty()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_in_a_terminal_it_goes_on_until_ctrl_c_and_gives_the_screen_back(closed_port: str) -> None:
    arguments = ("--interval", "0.2", "--url", closed_port)
    with (
        terminal() as (ours, theirs),
        running(*arguments, stdout=theirs, stderr=theirs) as process,
    ):
        shown = read_until(ours, lambda text: text.count(b"cannot be reached") >= 2)
        assert ENTER_SCREEN in shown
        process.send_signal(signal.SIGINT)
        read_until(ours, lambda text: LEAVE_SCREEN in text)
        assert process.wait(DEADLINE_S) == 0


def test_json_comes_line_by_line_until_nobody_reads(closed_port: str) -> None:
    arguments = ("--json", "--interval", "0.2", "--url", closed_port)
    with running(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        times = [json.loads(process.stdout.readline())["time"] for _ in range(2)]
        assert times[0] < times[1]
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == b""


def read_until(terminal: int, found: Callable[[bytes], bool]) -> bytes:
    """What comes from a terminal, until that is enough."""
    give_up_at = time.monotonic() + START_DEADLINE_S
    text = b""
    while not found(text):
        assert time.monotonic() < give_up_at, text
        if select.select([terminal], [], [], 0.2)[0]:
            text += os.read(terminal, 65536)
    return text
