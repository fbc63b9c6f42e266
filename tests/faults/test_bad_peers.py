# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Peers that break the protocol: each is refused and counted, and nobody else notices (R8, R10).

The peer is a program among the real workers (tests/support/rogue_peer.py). After every test a
client gets the right answer, and all blocks are free.
"""

from __future__ import annotations

import itertools
import json
import math
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dynamo.sglang_mm_resume.core import messages as m
from dynamo.sglang_mm_resume.core.layout import PROTOCOL_VERSION
from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import FAULTS, MODEL_NAME, Model
from tests.support.exact import assert_exact
from tests.support.oracle import Oracle
from tests.support.pictures import num_tokens, patchwork
from tests.support.rogue import Rogue
from tests.support.worker_status import get, leftovers, statuses, wait_until

DEPLOYMENT = FAULTS

QUESTION = "What is this?"
PICTURE = patchwork(900, 4, 4)
ROWS = num_tokens(PICTURE)
GRID = [1, 8, 8]
BLOCK_SIZE = 16
NUM_BLOCKS = 8
TIMEOUT_S = 8.0
"""--mm-bootstrap-timeout of this deployment."""
HOME_DEADLINE_S = 20.0
NOBODY = 12345
"""An instance id that no worker has."""
MAX_WAITING = 256
ENGINE_LOGS = "Prefill batch"
"""What SGLang writes into the log whenever it takes up prompts."""
JUNK = "x" * 2**20

PREFILL, ENCODE, ENCODE_CONTROL = (
    "prefill.mm_transfer",
    "encoder.generate",
    "encoder.mm_transfer",
)
GENERATE = "prefill.generate"
ROLES = {PREFILL: "prefill", GENERATE: "prefill", ENCODE: "encode", ENCODE_CONTROL: "encode"}

Message = dict[str, Any]
_numbers = itertools.count()


class Bench:
    """What the tests need of a stack and of the rogue among its workers."""

    def __init__(self, stack: LocalStack, rogue: Rogue, model: Path) -> None:
        """Find everybody, and say hello once as the writer `known`."""
        config = json.loads((model / "config.json").read_text())
        self.stack = stack
        self.rogue = rogue
        self.served = 0
        self.image_token: int = config["image_token_id"]
        self.layout = {
            "protocol_version": PROTOCOL_VERSION,
            "model": MODEL_NAME,
            "width": config.get("text_config", config)["hidden_size"],
            "dtype": "float32",
            "block_size": BLOCK_SIZE,
        }
        (self.prefill,) = rogue.do("instances", PREFILL)
        self.encode: int = rogue.do("instances", ENCODE)[0]
        self.receiver: str = rogue.do("connect", "known", self.prefill, self.layout, "known")

    def ask(self, endpoint: str, payload: Any) -> Message:
        """One message to a worker, one answer."""
        return self.rogue.ask(endpoint, self._instance(endpoint), payload)

    def call(self, endpoint: str, payload: Any) -> dict[str, Any]:
        """Everything that a worker answers."""
        answered: dict[str, Any] = self.rogue.do(
            "call", endpoint, self._instance(endpoint), payload
        )
        return answered

    def begin(self, endpoint: str, payload: Any, count: int = 1) -> int:
        """Calls that go on meanwhile."""
        number: int = self.rogue.do("begin", endpoint, self._instance(endpoint), payload, count)
        return number

    def reserve(self, writer: int | None = None) -> Message:
        """A grant of two blocks for a transfer of its own."""
        message = _message(
            "reserve", transfer_id=_new_id(), writer_instance_id=writer or self.encode
        )
        answer = self.ask(PREFILL, message)
        assert answer["op"] == "granted", answer
        grant: Message = answer["grant"]
        return grant

    def abort(self, transfer_id: str, writer_closed: bool = True) -> None:
        """End a transfer."""
        message = _message("abort", transfer_id=transfer_id, writer_closed=writer_closed)
        assert self.ask(PREFILL, message)["op"] == "done"

    def write(self, grant: Message, notice: str, name: str = "known", element: float = 1.0) -> None:
        """Fill the first block of a grant, and say so in whatever way."""
        self.rogue.do("write", name, self.receiver, grant["blocks"][:1], element, notice)

    def encode_of(self, grant: Message, **changes: Any) -> Message:
        """What the processor asks of an encode worker."""
        fields: dict[str, Any] = {
            "transfer_id": grant["transfer_id"],
            "media": {"modality": "image", "url": data_url(PICTURE)},
            "grant": grant,
            "receiver": _message("receiver", instance_id=self.prefill, agent=self.receiver),
            "prompt_tokens": 4,
            "max_prompt_tokens": 1000,
        }
        return _message("encode", **fields | changes)

    def sent(self) -> str:
        """A transfer whose embedding a real encode worker has written."""
        grant = self.reserve()
        answered = self.call(ENCODE, self.encode_of(grant))
        assert [answer["op"] for answer in answered["answers"]] == ["sized", "sent"], answered
        assert answered["answers"][0]["grid"] == GRID
        transfer_id: str = grant["transfer_id"]
        return transfer_id

    def generate(self, *transfers: Any, placeholders: int = 1) -> dict[str, Any]:
        """Ask the prefill worker for a token, as the processor would."""
        return self.call(GENERATE, self.request(list(transfers), placeholders))

    def assert_served(self, transfer_id: str) -> None:
        """A request that is as it should be."""
        answered = self.generate(_received(transfer_id))
        assert answered["error"] is None
        assert answered["answers"]
        self.served += 1

    def request(self, transfers: Any, placeholders: int = 1) -> Message:
        """A request with transfers."""
        return {
            "token_ids": [1, *[self.image_token] * placeholders, 2],
            "stop_conditions": {"max_tokens": 1},
            "sampling_options": {"temperature": 0.0},
            "output_options": {},
            "mm_resume": transfers,
        }

    def _instance(self, endpoint: str) -> int:
        return self.prefill if ROLES[endpoint] == "prefill" else self.encode


@pytest.fixture(scope="module")
def bench(stack: LocalStack, models: dict[Model, Path]) -> Iterator[Bench]:
    """One rogue for all tests."""
    with Rogue(stack) as rogue:
        yield Bench(stack, rogue, models[FAULTS.model])


@pytest.fixture(autouse=True)
def serves_afterwards(stack: LocalStack, bench: Bench, oracle: Oracle) -> Iterator[None]:
    """Whatever a peer has done, the engine has not seen it, and the next client is served."""
    served = bench.served
    batches = _engine_batches(stack)
    yield
    assert _engine_batches(stack) - batches == bench.served - served
    answer = ask(stack.base_url, MODEL_NAME, [data_url(PICTURE)], QUESTION)
    assert_exact(answer, oracle.generate([PICTURE], QUESTION, 16))


# Messages that are wrong in themselves.


@pytest.mark.parametrize("endpoint", [PREFILL, ENCODE, ENCODE_CONTROL])
def test_another_protocol_version(bench: Bench, endpoint: str) -> None:
    versions = [PROTOCOL_VERSION + 1, 0, -1, None, JUNK]
    with _counted(bench, ROLES[endpoint], {"refusals.version": len(versions)}):
        for version in versions:
            answer = bench.ask(endpoint, {"op": "ping", "v": version})
            assert answer["reason"] == "version"
            assert str(PROTOCOL_VERSION) in answer["message"]
            assert str(version)[:20] in answer["message"]


def test_another_layout(bench: Bench) -> None:
    wrong: dict[str, Any] = {
        "model": "other",
        "width": bench.layout["width"] * 2,
        "dtype": "bfloat16",
        "block_size": BLOCK_SIZE * 2,
    }
    expected = {"refusals.layout": len(wrong) + 1, "refusals.version": 1}
    with _counted(bench, "prefill", expected):
        for field, value in wrong.items():
            answer = bench.ask(PREFILL, _hello(bench.layout | {field: value}))
            assert answer["reason"] == "layout"
            assert (
                f"{field} is {bench.layout[field]!r} here and {value!r} there"
                in (answer["message"])
            )
        assert bench.ask(PREFILL, _hello(bench.layout | {"model": JUNK}))["reason"] == "layout"
        newer = bench.layout | {"protocol_version": PROTOCOL_VERSION + 1}
        assert bench.ask(PREFILL, _hello(newer))["reason"] == "version"


@pytest.mark.parametrize("endpoint", [PREFILL, ENCODE, ENCODE_CONTROL])
def test_malformed_messages(bench: Bench, endpoint: str) -> None:
    wrong: list[Any] = [
        *(None, 3, "text", [], {}, [{"op": "ping"}], JUNK),
        *({"op": op} for op in ("nonsense", "", None, ["ping"], {"op": "ping"}, JUNK)),
        {"op": "ping", "surprise": 1},
        {"op": "ping", JUNK: 1},
        *({"op": op} for op in ("hello", "reserve", "resume", "abort", "encode", "forward")),
        _message("reserve", transfer_id="short", writer_instance_id=1),
        _message("reserve", transfer_id=JUNK, writer_instance_id=1),
        _message("reserve", transfer_id=_new_id(), writer_instance_id="one"),
        _message("reserve", transfer_id=_new_id(), writer_instance_id=1.5),
        _message("resume", transfer_id=_new_id(), sent_tokens=-1, total_tokens=1, wait=True),
        _message("resume", transfer_id=_new_id(), sent_tokens=0, total_tokens=0, wait=True),
        _message("resume", transfer_id=_new_id(), sent_tokens=0, total_tokens=1, wait=7),
        _message("close", transfer_id=None),
        _hello({}),
        _hello(bench.layout | {"width": -1}),
        _hello(bench.layout | {"dtype": "int8"}),
    ]
    with _counted(bench, ROLES[endpoint], {"refusals.protocol": len(wrong)}):
        for payload in wrong:
            answer = bench.ask(endpoint, payload)
            assert (answer["op"], answer["reason"]) == ("refusal", "protocol"), payload
            assert len(answer["message"]) <= m.MAX_REFUSAL_CHARS


def test_malformed_transfers_of_a_request(bench: Bench) -> None:
    good = _received(_new_id())
    wrong = [
        *(3, JUNK, {"transfer_id": "x"}, [None], [JUNK], [{}]),
        *([good | {field: -1}] for field in good),
        *([good | {"grid": grid}] for grid in ([], [1, 8], [0, 8, 8], [1, -8, -8], "grid")),
        [good | {"surprise": 1}],
        [good, good | {"modality": "audio"}],
        [good | {"timestamps": [0.5, 1.5]}],
        [good | {"second_per_grid": -1.0}],
    ]
    with _counted(bench, "prefill", {"refusals.protocol": len(wrong) + 1}):
        for transfers in wrong:
            _assert_failed(bench.call(GENERATE, bench.request(transfers)))
        _assert_failed(bench.call(GENERATE, ["no", "request"]))


# Messages about the wrong transfer.


def test_unknown_transfers(bench: Bench) -> None:
    unknown = {"transfer_id": _new_id()}
    with (
        _counted(bench, "prefill", {"refusals.unknown_transfer": 2}),
        _counted(bench, "encode", {"refusals.unknown_transfer": 1}),
    ):
        for wait in (True, False):
            resume = _message("resume", **unknown, sent_tokens=0, total_tokens=9, wait=wait)
            assert bench.ask(PREFILL, resume)["reason"] == "unknown_transfer"
        forward = _message("forward", grant=_grant(unknown["transfer_id"]))
        assert bench.ask(ENCODE_CONTROL, forward)["reason"] == "unknown_transfer"
        # Whoever ends what is not there has what it wants.
        assert bench.ask(ENCODE_CONTROL, _message("close", **unknown))["op"] == "done"
        bench.abort(_new_id())


def test_a_transfer_id_that_was_used(bench: Bench) -> None:
    grant = bench.reserve()
    again = _message("reserve", transfer_id=grant["transfer_id"], writer_instance_id=bench.encode)
    with (
        _counted(bench, "prefill", {"refusals.duplicate": 2}),
        _counted(bench, "encode", {"refusals.duplicate": 2}),
    ):
        assert bench.ask(PREFILL, again)["reason"] == "duplicate"
        encode = bench.encode_of(grant)
        assert len(bench.call(ENCODE, encode)["answers"]) == 2
        assert bench.ask(ENCODE, encode)["reason"] == "duplicate"
        assert wait_until(lambda: _state(bench, grant) == "complete", HOME_DEADLINE_S)
        bench.abort(grant["transfer_id"])
        assert bench.ask(PREFILL, again)["reason"] == "duplicate"
        early = _new_id()
        bench.ask(ENCODE_CONTROL, _message("close", transfer_id=early))
        late = bench.encode_of(grant | {"transfer_id": early})
        assert bench.ask(ENCODE, late)["reason"] == "duplicate"


def test_resumes_that_contradict(bench: Bench) -> None:
    """Of a transfer that has used nothing of its grant, or has named another length."""
    grant = bench.reserve()
    fields = {"transfer_id": grant["transfer_id"], "wait": False}
    expected = {"refusals.protocol": 2, "refusals.too_long": 1}
    with _counted(bench, "prefill", expected):
        huge = _message("resume", **fields, sent_tokens=0, total_tokens=2**62)
        assert bench.ask(PREFILL, huge)["reason"] == "too_long"
        assert (
            bench.ask(PREFILL, _message("resume", **fields, sent_tokens=0, total_tokens=20))["op"]
            == "no_blocks"
        )
        other = _message("resume", **fields, sent_tokens=0, total_tokens=21)
        assert bench.ask(PREFILL, other)["reason"] == "protocol"
        waits = fields | {"wait": True}
        ahead = _message("resume", **waits, sent_tokens=7, total_tokens=20)
        assert bench.ask(PREFILL, ahead)["reason"] == "protocol"
    bench.abort(grant["transfer_id"])


# Notices.


def test_notices_that_are_none(bench: Bench) -> None:
    grant = bench.reserve()
    newer = _notice(grant, v=PROTOCOL_VERSION + 1)
    wrong = ["no json", "{}", "[]", "\x00", JUNK, newer, newer[:-1], _notice(grant, chunk=-1)]
    with _counted(bench, "prefill", {"malformed_notices": len(wrong)}):
        for notice in wrong:
            bench.write(grant, notice)
    assert _state(bench, grant) == "receiving"
    bench.abort(grant["transfer_id"])


def test_notices_that_do_not_fit(bench: Bench) -> None:
    """Nothing of them changes the transfer, which then gets its rows."""
    grant = bench.reserve()
    generation = grant["generation"]
    misfits = [
        {"chunk": 1},
        {"chunk": 10**30},
        {"first_token": 16},
        {"num_tokens": ROWS + 1},
        {"num_tokens": ROWS - 1},
        {"first_token": 32, "chunk": 2, "total_tokens": 48},  # beyond the grant
    ]
    with _counted(
        bench,
        "prefill",
        {
            "oddities.unknown_transfer": 1,
            "oddities.stale_generation": 2,
            "oddities.misfit": len(misfits),
        },
    ):
        bench.write(grant, _notice(grant, transfer_id=_new_id()))
        bench.write(grant, _notice(grant, generation=generation + 1))
        bench.write(grant, _notice(grant, generation=max(0, generation - 1)))
        for misfit in misfits:
            bench.write(grant, _notice(grant, **misfit))
    assert _state(bench, grant) == "receiving"
    bench.write(grant, _notice(grant))
    assert wait_until(lambda: _state(bench, grant) == "complete", HOME_DEADLINE_S)
    with _counted(bench, "prefill", {"oddities.stale_generation": 1}):
        bench.write(grant, _notice(grant))
    bench.abort(grant["transfer_id"])
    with _counted(bench, "prefill", {"oddities.late": 1}):
        bench.write(grant, _notice(grant))


def test_a_stranger_is_not_heard(bench: Bench) -> None:
    """A NIXL agent that never said hello: its bytes land, as nothing can stop them, unheard."""
    bench.rogue.do("connect", "stranger", bench.prefill, bench.layout, "known")
    grant = bench.reserve()
    with _counted(bench, "prefill", {"stranger_notices": 1}):
        bench.write(grant, _notice(grant), name="stranger")
    assert _state(bench, grant) == "receiving"
    bench.abort(grant["transfer_id"])


def test_more_and_fewer_rows_than_were_announced(bench: Bench) -> None:
    grant = bench.reserve()
    announced = _message(
        "resume", transfer_id=grant["transfer_id"], sent_tokens=0, total_tokens=ROWS, wait=False
    )
    assert bench.ask(PREFILL, announced)["op"] == "no_blocks"
    with _counted(bench, "prefill", {"oddities.misfit": 2}):
        for rows in (ROWS + 1, ROWS - 1):
            bench.write(grant, _notice(grant, num_tokens=rows, total_tokens=rows))
    bench.abort(grant["transfer_id"])


def test_more_rows_than_a_worker_may_assemble(bench: Bench) -> None:
    """Known from the notice alone; the transfer ends at once."""
    grant = bench.reserve()
    with _counted(bench, "prefill", {"reasons.too_long": 1}):
        bench.write(grant, _notice(grant, num_tokens=32, total_tokens=10**12))
    _assert_home(bench)


def test_a_notice_for_quarantined_blocks(bench: Bench) -> None:
    """Its writer does not exist, so that they stay away until it counts as dead."""
    grant = bench.reserve(writer=NOBODY)
    bench.abort(grant["transfer_id"], writer_closed=False)
    assert _state(bench, grant) == "quarantined"
    with _counted(bench, "prefill", {"oddities.late": 1}):
        bench.write(grant, _notice(grant))
    _assert_home(bench)


# Rows.


@pytest.mark.parametrize("element", [math.nan, math.inf])
def test_rows_that_are_not_finite(bench: Bench, element: float) -> None:
    _assert_corrupt(bench, element, _checksum(bench, element), "not finite")


def test_rows_without_a_checksum_that_are_not_finite(bench: Bench) -> None:
    _assert_corrupt(bench, math.nan, None, "not finite")


def test_a_wrong_checksum(bench: Bench) -> None:
    _assert_corrupt(bench, 1.0, _checksum(bench, 1.0) ^ 1, "not those that were sent")


def test_the_right_checksum(bench: Bench) -> None:
    grant = bench.reserve()
    bench.write(grant, _notice(grant, checksum=_checksum(bench, 1.0)))
    assert wait_until(lambda: _state(bench, grant) == "complete", HOME_DEADLINE_S)
    bench.assert_served(grant["transfer_id"])


def test_a_request_that_describes_its_embedding_wrongly(bench: Bench) -> None:
    """The engine must not see it; nor must its prompt be spelled out, row by row, to find out."""
    wrong = [
        {"total_tokens": ROWS + 1},
        {"total_tokens": ROWS - 1},
        {"grid": [1, 8, 10]},
        {"grid": [1, 4, 8]},
        {"grid": [1, 2, 2]},
        {"grid": [1, 2**15, 2**15]},
        {"grid": [2**20, 2**20, 2**20]},
    ]
    with _counted(bench, "prefill", {"refusals.protocol": len(wrong) + 2}):
        for change in wrong:
            _assert_failed(bench.generate(_received(bench.sent()) | change))
        for placeholders in (0, 2):
            _assert_failed(bench.generate(_received(bench.sent()), placeholders=placeholders))
    bench.assert_served(bench.sent())


def test_a_request_that_names_an_embedding_twice(bench: Bench) -> None:
    received = _received(bench.sent())
    with _counted(bench, "prefill", {"refusals.protocol": 1}):
        _assert_failed(bench.generate(received, received, placeholders=2))


def test_a_request_for_what_is_not_there(bench: Bench) -> None:
    with _counted(bench, "prefill", {"refusals.unknown_transfer": 1}):
        assert "no live transfer" in _assert_failed(bench.generate(_received(_new_id())))


def test_a_request_for_what_never_comes(bench: Bench) -> None:
    grant = bench.reserve()
    started = time.monotonic()
    with _counted(bench, "prefill", {"refusals.failed": 1, "reasons.failed": 1}):
        said = _assert_failed(bench.generate(_received(grant["transfer_id"])))
    assert "nothing arrived" in said
    assert time.monotonic() - started < TIMEOUT_S + 2
    _assert_home(bench)


# Grants that no receiver has made.


def test_grants_that_no_writer_may_follow(bench: Bench) -> None:
    wrong: list[dict[str, Any]] = [
        {"blocks": [0, NUM_BLOCKS]},
        {"blocks": [2**40]},
        {"blocks": [0, 0]},
        {"blocks": []},
        {"blocks": [-1]},
        {"first_token": 16},
        {"block_size": BLOCK_SIZE * 2},
        {"valid_s": 1e300},
        {"valid_s": math.inf},
    ]
    with _counted(bench, "encode", {"refusals.protocol": len(wrong) + 1}):
        for change in wrong:
            encode = bench.encode_of(_grant(_new_id()) | change)
            assert bench.ask(ENCODE, encode)["reason"] == "protocol", change
        stolen = bench.encode_of(_grant(_new_id()), transfer_id=_new_id())
        assert "another transfer" in bench.ask(ENCODE, stolen)["message"]


def test_a_grant_of_a_receiver_that_is_not_there(bench: Bench) -> None:
    nobody = _message("receiver", instance_id=NOBODY, agent="nobody")
    other = _message("receiver", instance_id=bench.prefill, agent="other")
    with _counted(bench, "encode", {"refusals.failed": 1, "refusals.protocol": 1}):
        encode = bench.encode_of(_grant(_new_id()), receiver=nobody)
        assert bench.ask(ENCODE, encode)["reason"] == "failed"
        encode = bench.encode_of(_grant(_new_id()), receiver=other)
        assert bench.ask(ENCODE, encode)["reason"] == "protocol"


# Peers that go away, or come in masses.


def test_a_writer_that_does_not_exist(bench: Bench) -> None:
    """It answers no probe, so that its blocks do not wait for the whole time-out."""
    grant = bench.reserve(writer=NOBODY)
    started = time.monotonic()
    with _counted(bench, "prefill", {"reasons.failed": 1}):
        assert wait_until(lambda: _state(bench, grant) != "receiving", TIMEOUT_S)
    assert time.monotonic() - started < TIMEOUT_S - 2
    _assert_home(bench)


def test_a_peer_that_reserves_and_vanishes(stack: LocalStack, bench: Bench) -> None:
    """It had the whole pool; a client that comes now waits for it, and is served."""
    with Rogue(stack) as other:
        for _ in range(NUM_BLOCKS // 2):
            message = _message("reserve", transfer_id=_new_id(), writer_instance_id=bench.encode)
            assert other.ask(PREFILL, bench.prefill, message)["op"] == "granted"
        assert statuses(stack, "prefill")[0]["pool"]["free"] == 0
        other.vanish()
    assert ask(stack.base_url, MODEL_NAME, [data_url(PICTURE)], QUESTION).ok
    bench.served += 1
    _assert_home(bench)


def test_a_flood_of_reserves(stack: LocalStack, bench: Bench) -> None:
    """What waits is bounded, and costs nothing; what does not wait is refused at once."""
    (prefill,) = [process for process in stack.processes if process.name == "prefill-0"]
    memory = psutil.Process(prefill.pid).memory_info
    before = memory().rss
    granted, refused = NUM_BLOCKS // 2, 100
    reserve = _message("reserve", transfer_id=f"{_new_id()}-{{n}}", writer_instance_id=bench.encode)
    with _counted(bench, "prefill", {"refusals.overloaded": refused}, also="reasons"):
        bench.begin(PREFILL, reserve, granted + MAX_WAITING + refused)
        waiting = lambda: statuses(stack, "prefill")[0]["waiting"]  # noqa: E731
        assert wait_until(
            lambda: len(bench.rogue.do("ended")) == granted + refused, HOME_DEADLINE_S
        )
        assert waiting() == MAX_WAITING
        answers = Counter(
            call["answers"][0].get("reason", "granted") for call in bench.rogue.do("ended")
        )
        assert answers == {"granted": granted, "overloaded": refused}
        assert memory().rss - before < 50 * 2**20
        bench.rogue.do("hang_up")
        assert wait_until(lambda: not waiting(), HOME_DEADLINE_S)
    _assert_home(bench)


# What operators see.


@pytest.mark.parametrize("role", ["prefill", "encode"])
def test_every_count_is_in_the_metrics(stack: LocalStack, bench: Bench, role: str) -> None:
    wrong = bench.ask(PREFILL if role == "prefill" else ENCODE_CONTROL, {"op": "nonsense"})
    assert wrong["reason"] == "protocol"
    state = Counter[str]()
    for url in stack.system_urls[role]:
        for line in get(f"{url}/metrics").text.splitlines():
            for kind in ("refusals", "oddities", "reasons"):
                start = f"dynamo_component_mm_resume_{kind}_total{{"
                if line.startswith(start):
                    name = line.split('kind="')[1].split('"')[0]
                    state[f"{kind}.{name}"] += int(float(line.split()[-1]))
            for total in ("malformed_notices", "stranger_notices"):
                if line.startswith(f"dynamo_component_mm_resume_{total}_total{{"):
                    state[total] += int(float(line.split()[-1]))
    assert +state == +_counts(stack, role)


# Helpers.


@contextmanager
def _counted(
    bench: Bench, role: str, expected: dict[str, int], also: str = "nothing"
) -> Iterator[None]:
    """Exactly these counts of a role's workers rise; those that start with `also` may, too."""
    before = _counts(bench.stack, role)
    yield

    def risen() -> dict[str, int]:
        now = _counts(bench.stack, role)
        return {
            name: now[name] - before[name]
            for name in now
            if now[name] > before[name] and not name.startswith(also)
        }

    assert wait_until(lambda: risen() == expected, HOME_DEADLINE_S), risen()


def _counts(stack: LocalStack, role: str) -> Counter[str]:
    counts = Counter[str]()
    for state in statuses(stack, role):
        totals = state["totals"]
        by_kind = {
            "refusals": state["refusals"],
            "oddities": state.get("oddities", {}),
            "reasons": totals.get("reasons", {}),
        }
        for name, kinds in by_kind.items():
            counts.update({f"{name}.{kind}": count for kind, count in kinds.items()})
        for name in ("malformed_notices", "stranger_notices"):
            counts[name] += totals.get(name, 0)
    return counts


def _state(bench: Bench, grant: Message) -> str | None:
    transfers: dict[str, str] = statuses(bench.stack, "prefill")[0]["transfers"]
    return transfers.get(grant["transfer_id"])


def _engine_batches(stack: LocalStack) -> int:
    """How often the engine has taken up prompts."""
    (prefill,) = [process for process in stack.processes if process.name == "prefill-0"]
    return prefill.log_path.read_text(errors="replace").count(ENGINE_LOGS)


def _assert_home(bench: Bench) -> None:
    assert wait_until(lambda: not leftovers(bench.stack), HOME_DEADLINE_S), leftovers(bench.stack)


def _assert_failed(answered: dict[str, Any]) -> str:
    assert answered["answers"] == []
    assert answered["error"], "it was served"
    return str(answered["error"])


def _assert_corrupt(bench: Bench, element: float, checksum: int | None, why: str) -> None:
    """The transfer ends at once, and its request with it; the engine sees nothing."""
    grant = bench.reserve()
    with _counted(bench, "prefill", {"reasons.corrupt": 1, "refusals.corrupt": 1}):
        bench.write(grant, _notice(grant, checksum=checksum), element=element)
        said = _assert_failed(bench.generate(_received(grant["transfer_id"])))
    assert why in said
    assert "503" in said
    _assert_home(bench)


def _checksum(bench: Bench, element: float) -> int:
    """Of rows that all have this element."""
    return zlib.crc32(np.full((ROWS, bench.layout["width"]), element, np.float32).tobytes())


def _new_id() -> str:
    return f"rogue-{time.time_ns():x}-{next(_numbers)}"


def _message(op: str, **fields: Any) -> Message:
    return {"op": op, "v": PROTOCOL_VERSION, **fields}


def _hello(layout: dict[str, Any]) -> Message:
    return _message("hello", layout=layout, instance_id=1, agent="rogue")


def _grant(transfer_id: str) -> Message:
    """One that the receiver has never made, but could have."""
    return _message(
        "grant",
        transfer_id=transfer_id,
        generation=0,
        first_token=0,
        blocks=[0, 1],
        block_size=BLOCK_SIZE,
        chunk_blocks=16,
        valid_s=8.0,
        resumable=True,
    )


def _notice(grant: Message, **changes: Any) -> str:
    """That a picture's rows are in the first block of its grant."""
    fields = {
        "transfer_id": grant["transfer_id"],
        "generation": grant["generation"],
        "chunk": 0,
        "first_token": 0,
        "num_tokens": ROWS,
        "total_tokens": ROWS,
    }
    return json.dumps(_message("chunk", **fields | changes))


def _received(transfer_id: str) -> Message:
    """What the processor says of a picture's transfer."""
    return {
        "transfer_id": transfer_id,
        "modality": "image",
        "total_tokens": ROWS,
        "grid": GRID,
        "content_hash": "0123456789abcdef",
    }
