# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark over HTTP that need no graph."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.end_to_end import measures, report
from benchmarks.end_to_end.client import Client, Failed
from benchmarks.end_to_end.graphs import AGGREGATED, GRAPHS, LOCAL, OURS
from benchmarks.end_to_end.questions import MAX_TOKENS, Questions
from benchmarks.end_to_end.results import Results, Setup
from benchmarks.end_to_end.targets import targets

ONE_CELL = (112, 112)
SMALL = (ONE_CELL,)
USAGE = {"completion_tokens": MAX_TOKENS}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_graphs_of_a_turn_see_the_same_pictures_and_none_twice() -> None:
    one, other = (Questions("0/0") for _ in range(2))
    drawn = [one.draw(f"a/{i}", (ONE_CELL, (224, 112))) for i in range(5)]
    assert [other.draw(f"a/{i}", (ONE_CELL, (224, 112))) for i in range(5)] == drawn
    assert Questions("0/1").draw("a/0", (ONE_CELL, (224, 112))).body != drawn[0].body
    with pytest.raises(ValueError, match="drawn before"):
        one.draw("a/0", (ONE_CELL, (224, 112)))


def test_pictures_have_the_sizes_asked_for() -> None:
    body = json.loads(Questions("t").draw("a", (ONE_CELL, (336, 448))).body)
    urls = [part["image_url"]["url"] for part in body["messages"][0]["content"][:-1]]
    headers = [base64.b64decode(url.partition(",")[2])[16:24] for url in urls]
    assert [int.from_bytes(header[:4]) for header in headers] == [112, 336]
    assert [int.from_bytes(header[4:]) for header in headers] == [112, 448]


@pytest.mark.parametrize("stream", [False, True])
async def test_client_takes_both_kinds_of_answer(stream: bool) -> None:
    async with _serving(_answer("ab", USAGE)) as url, Client(url) as client:
        reply = await client.ask(Questions("t").draw("a", SMALL, stream))
    assert reply.text == "ab"
    assert 0 < reply.first_token_s <= reply.total_s


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("handler", "why"),
    [
        pytest.param(lambda: _status(503), "status 503", id="refused"),
        pytest.param(lambda: _answer("a", {"completion_tokens": 3}), "3 tokens", id="short"),
        pytest.param(lambda: _answer("a", None), "0 tokens", id="no-usage"),
    ],
)
async def test_client_fails_on_less_than_a_whole_answer(
    handler: Callable[[], Handler], why: str, stream: bool
) -> None:
    async with _serving(handler()) as url, Client(url) as client:
        with pytest.raises(Failed, match=why):
            await client.ask(Questions("t").draw("a", SMALL, stream))


async def test_client_fails_on_an_error_within_a_stream() -> None:
    handler = _events([_chunk("a"), {"error": {"message": "gone"}}])
    async with _serving(handler) as url, Client(url) as client:
        with pytest.raises(Failed, match="gone"):
            await client.ask(Questions("t").draw("a", SMALL))


def test_targets_are_judged_and_say_what_is_missing() -> None:
    results = Results()
    results.add(Setup(OURS, 1), measures.ANSWER, 0.060)
    results.add(Setup(LOCAL, 1), measures.ANSWER, 0.060)
    results.add(Setup(AGGREGATED, 0), measures.ANSWER, 0.050)
    verdicts = {target.what: target.verdict for target in targets(results)}
    whole = f"{measures.ANSWER}, median"
    assert verdicts[f"{whole} / {LOCAL}"] == "not met"
    assert verdicts[f"{whole} - {AGGREGATED}"] == "met"
    assert verdicts[f"{whole} / nixl-read"] == "not measured"


def test_answers_are_compared_with_the_aggregated_engine() -> None:
    question = replace(Questions("t").draw("a", SMALL), expected="a red star")
    results = Results()
    results.answered(Setup(AGGREGATED, 0), question, "a red")
    results.answered(Setup(OURS, 1), question, "a red")
    results.answered(Setup(OURS, 2), question, "a blue")
    ours = results.answers()[OURS]
    assert (ours.given, ours.right, ours.compared, ours.same) == (2, 1, 2, 1)
    assert ours.different == [{"key": "t/a", "answer": "a blue", AGGREGATED: "a red"}]


def test_a_graph_that_fails_is_in_the_report(tmp_path: Path) -> None:
    results = Results()
    results.add(Setup(OURS, 1), measures.FOUR, 0.1)
    results.fail(Setup(LOCAL, 1), measures.FOUR, "no answer in 60 s")
    results.broken[AGGREGATED].append("not ready\nits log")
    report.write(results, tmp_path / "r.json")
    text = (tmp_path / "r.md").read_text()
    assert "- local, 1 encode: four images" in text
    assert f"- {AGGREGATED}: not ready" in text
    assert (tmp_path / "r.png").stat().st_size > 1000
    assert json.loads((tmp_path / "r.json").read_text())["targets"]


def test_processor_time_is_of_one_request(tmp_path: Path) -> None:
    results = Results()
    for seconds in (0.3, 0.1):
        results.spend(Setup(OURS, 1), "at once", 4, {"prefill": seconds, "encode": 0.2})
    report.write(results, tmp_path / "r.json")
    assert (
        "| at once | ours, 1 encode |  |  | 50.0 | 50.0 | 100.0 |"
        in (tmp_path / "r.md").read_text()
    )
    spent = json.loads((tmp_path / "r.json").read_text())["processor_time"]
    assert [(s["requests"], s["ms"]) for s in spent] == [(8, {"prefill": 50.0, "encode": 50.0})]


def test_graphs_take_turns_with_every_number_of_workers() -> None:
    assert [graph.phases for graph in GRAPHS] == [(2, 1)] * 4 + [(0, 0)]


def _chunk(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def _answer(text: str, usage: dict[str, int] | None) -> Handler:
    """Streamed where that is asked for, then a letter at a time."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if (await request.json())["stream"]:
            last = {"choices": [], "usage": usage}
            return await _events([{"choices": []}, *map(_chunk, text), last])(request)
        message = {"choices": [{"index": 0, "message": {"content": text}}], "usage": usage}
        return web.json_response(message)

    return handle


def _events(events: list[dict[str, object]]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    return handle


def _status(code: int) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text="later")

    return handle


@asynccontextmanager
async def _serving(handler: Handler) -> AsyncIterator[str]:
    """A server of one route; yields the base of its address."""
    app = web.Application()
    app.router.add_post("/chat/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
