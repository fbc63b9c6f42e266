# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Sends a picture through each pair of an encode and a prefill worker, as a processor would.

The hand-off is the processor's own (workers/hand_off.py). The embedding is given back instead of
being handed to the engine, so that nothing is generated.
"""

import asyncio
import base64
import io
import itertools
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image

from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.core.budget import PromptBudget
from dynamo.sglang_mm_resume.core.messages import Media
from dynamo.sglang_mm_resume.core.transitions import Receiving
from dynamo.sglang_mm_resume.doctor.carrier import Carrier, bandwidth, carrier, difference
from dynamo.sglang_mm_resume.doctor.graph import Graph, Worker, describe
from dynamo.sglang_mm_resume.doctor.pools import HOST_POOLS, in_gpu_memory
from dynamo.sglang_mm_resume.doctor.report import Result, fail, ok, skip, warn
from dynamo.sglang_mm_resume.doctor.transports import CMA_ACTION, CUDA_IPC_ACTION, RDMA_ACTION
from dynamo.sglang_mm_resume.transport.rpc import Client
from dynamo.sglang_mm_resume.workers.balance import LeastOutstanding
from dynamo.sglang_mm_resume.workers.calls import Workers
from dynamo.sglang_mm_resume.workers.hand_off import Destination, HandOff, Item, Peers
from dynamo.sglang_mm_resume.workers.processor import UNKNOWN_LENGTH
from dynamo.sglang_mm_resume.workers.sizes import KnownSizes
from dynamo.sglang_mm_resume.workers.status import Description

#: Seconds for one picture: a large one on a CPU's vision tower takes some.
LIMIT_S: Final = 30.0
#: Seconds for a pair with all of its pictures.
PAIR_LIMIT_S: Final = 60.0
#: Seconds after which no further pair is begun.
ALL_LIMIT_S: Final = 120.0
#: Times that a picture is sent again. Its embedding is then on the encode worker, so that no vision
#: tower is part of what is measured.
REPEATS: Final = 5
#: Seconds between two looks whether an embedding is assembled.
LOOK_EVERY_S: Final = 0.01
#: What a picture consists of: squares of so many pixels, each of one colour.
SQUARE: Final = 28


@dataclass(frozen=True, slots=True)
class Moved:
    """One pair's figures: seconds, tokens, bytes."""

    first_s: float
    again_s: float
    tokens: int
    rounds: int
    num_bytes: int
    write_s: float
    used: Carrier


class Transfers:
    """Acts as a processor of its own."""

    def __init__(self, peers: Peers, about: Mapping[str, Client]) -> None:
        """`about`: clients of the endpoints `mm_status`, by role."""
        settings = Settings(bootstrap_timeout_s=LIMIT_S, heartbeat_interval_s=1.0)
        prefill = Workers("prefill", peers.prefill, peers.prefill_transfer, settings)
        workers = LeastOutstanding(
            peers.prefill_transfer,
            "prefill",
            settings.max_requests,
            settings.bootstrap_timeout_s,
            prefill.answers_ping,
        )
        self._prefill_workers = workers
        self._hand_off = HandOff(settings, peers, workers, KnownSizes(None))
        self._about = about

    async def close(self) -> None:
        """Wait until everything is given back."""
        await self._prefill_workers.close()
        await self._hand_off.finish()

    async def check(self, number: int, encode: Worker, prefill: Worker, size: int) -> Result:
        """One pair, whose number is to be told. `size`: of the picture, in pixels."""
        name = f"pair {number}"
        try:
            async with asyncio.timeout(PAIR_LIMIT_S):
                moved = await self._move(encode, prefill, size)
        except TimeoutError:
            return _failed(name, encode, prefill, f"not done within {PAIR_LIMIT_S:g} s")
        except Exception as error:  # whatever it is, the other pairs are examined as well
            return _failed(name, encode, prefill, str(error) or type(error).__name__)
        return judge(name, encode, prefill, moved)

    async def _move(self, encode: Worker, prefill: Worker, size: int) -> Moved:
        media = Media(modality="image", url=picture(size))
        first_s, _ = await self._once(media, encode, prefill)
        before = await describe(self._about["encode"], encode.instance_id)
        sent = [await self._once(media, encode, prefill) for _ in range(REPEATS)]
        after = await describe(self._about["encode"], encode.instance_id)
        item = sent[-1][1]
        num_bytes = _bytes_written(after) - _bytes_written(before)
        return Moved(
            first_s=first_s,
            again_s=statistics.median(seconds for seconds, _ in sent),
            tokens=item.handshake.sent_tokens,
            rounds=item.handshake.rounds,
            num_bytes=num_bytes,
            write_s=_write_seconds(after) - _write_seconds(before),
            used=carrier(
                num_bytes,
                difference(after.process.tcp_sent, before.process.tcp_sent),
                difference(after.process.rdma_sent, before.process.rdma_sent),
                one_machine(encode, prefill),
                memories(encode, prefill),
            ),
        )

    async def _once(self, media: Media, encode: Worker, prefill: Worker) -> tuple[float, Item]:
        """The seconds from the wish for blocks to the last chunk that is written."""
        item = Item("image 1", media, encode.instance_id)
        destination = Destination(prefill.instance_id, PromptBudget(1, UNKNOWN_LENGTH), priority=0)
        started = time.monotonic()
        await self._hand_off.move([item], destination)
        seconds = time.monotonic() - started
        try:
            await self._assembled(item.handshake.transfer_id, prefill)
        finally:
            self._hand_off.give_back([item], prefill.instance_id)
        return seconds, item

    async def _assembled(self, transfer_id: str, prefill: Worker) -> None:
        """Given back before, it would count as a failure of the prefill worker."""
        while True:
            said = await describe(self._about["prefill"], prefill.instance_id)
            if said.transfers.get(transfer_id) in (None, Receiving.COMPLETE.value):
                return
            await asyncio.sleep(LOOK_EVERY_S)


def pairs_of(graph: Graph) -> list[tuple[Worker, Worker]]:
    """Every encode worker with every prefill worker, of those that answer."""
    return list(itertools.product(graph.of("encode"), graph.of("prefill")))


def judge(name: str, encode: Worker, prefill: Worker, moved: Moved) -> Result:
    """Slow is what goes over tcp although there is a better way."""
    figures = {
        **_named(encode, prefill),
        "transport": moved.used.value,
        "one_machine": one_machine(encode, prefill),
        "tokens": moved.tokens,
        "rounds": moved.rounds,
        "latency_ms": round(1e3 * moved.again_s, 2),
        "first_ms": round(1e3 * moved.first_s, 2),
        "bytes": moved.num_bytes,
        "write_s": round(moved.write_s, 6),
    }
    rounds = "a round" if moved.rounds == 1 else f"{moved.rounds} rounds"
    text = (
        f"{encode.label} to {prefill.label}: {moved.tokens:,} tokens in {rounds}: "
        f"{1e3 * moved.again_s:.1f} ms (the first time, with the vision tower, "
        f"{1e3 * moved.first_s:.0f} ms), {bandwidth(moved.num_bytes, moved.write_s)} "
        f"over {moved.used}"
    )
    action = _remedy(encode, prefill) if moved.used is Carrier.TCP else ""
    if not action:
        return ok(name, text, **figures)
    return warn(name, f"{text}: a fall-back", action, **figures)


def one_machine(*workers: Worker) -> bool:
    """Do they run on the same machine, by the identifier of its boot?"""
    boots = {w.description.process.boot_id for w in workers if w.description}
    return len(boots) == 1 and "" not in boots


def memories(*workers: Worker) -> set[str]:
    """NIXL's names of where their pools are."""
    return {w.description.memory or "" for w in workers if w.description}


def picture(size: int) -> str:
    """A `data:` URL of a square picture that nobody has encoded before."""
    squares = max(1, size // SQUARE)
    small = Image.frombytes("RGB", (squares, squares), os.urandom(3 * squares * squares))
    file = io.BytesIO()
    small.resize((size, size), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def left_out(number: int, examined: int) -> list[Result]:
    """Says so where a graph has more pairs than are examined."""
    if number <= examined:
        return []
    text = (
        f"{examined} of {number} pairs were examined; the limits are --max-pairs, and "
        f"{ALL_LIMIT_S:g} s for all of them"
    )
    return [skip("further pairs", text, pairs=number, examined=examined)]


def _remedy(encode: Worker, prefill: Worker) -> str:
    """What would be faster than tcp; empty where nothing is."""
    if not one_machine(encode, prefill):
        each = [
            bool(w.description and w.description.process.rdma_devices) for w in (encode, prefill)
        ]
        if all(each):
            return f"both machines have RDMA devices: {RDMA_ACTION}"
        return HOST_POOLS if in_gpu_memory(encode, prefill) else ""
    action = CUDA_IPC_ACTION if in_gpu_memory(encode, prefill) else CMA_ACTION
    return f"{_differing(encode, prefill)}{action}"


def _differing(encode: Worker, prefill: Worker) -> str:
    """Names the likely cause, where it is seen."""
    processes = [w.description.process for w in (encode, prefill) if w.description]
    causes = [
        f"{key}={value} is set on {worker.label}"
        for worker, process in zip((encode, prefill), processes, strict=True)
        for key, value in process.ucx.items()
        if key == "UCX_TLS"
    ]
    if len({process.pid_namespace for process in processes}) > 1:
        causes.append("their PID namespaces differ")
    return f"{' and '.join(causes)}; " if causes else ""


def _named(encode: Worker, prefill: Worker) -> dict[str, str]:
    return {"encode": str(encode.instance_id), "prefill": str(prefill.instance_id)}


def _failed(name: str, encode: Worker, prefill: Worker, text: str) -> Result:
    action = (
        "look into the logs of both workers at this time; docs/failure-model.md tells what each "
        "error means"
    )
    text = f"{encode.label} to {prefill.label}: {text}"
    return fail(name, text, action, **_named(encode, prefill))


def _bytes_written(said: Description) -> int:
    return int(said.totals["bytes_written"])


def _write_seconds(said: Description) -> float:
    return float(said.totals["chunk_write_seconds"]["sum"])


async def transfers(peers: Peers, graph: Graph, size: int, max_pairs: int) -> list[Result]:
    """A result for every pair, one after the other: they would slow each other down."""
    pairs = pairs_of(graph)
    if not pairs:
        return [skip("pairs", "there is no encode and no prefill worker that answers")]
    results: list[Result] = []
    sender = Transfers(peers, graph.about)
    over_at = time.monotonic() + ALL_LIMIT_S
    try:
        for number, (encode, prefill) in enumerate(pairs[:max_pairs], start=1):
            if time.monotonic() < over_at:
                results.append(await sender.check(number, encode, prefill, size))
    finally:
        await sender.close()
    return [*results, *left_out(len(pairs), len(results))]
