# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Run every part, print the table, exit 1 on any failure."""

import argparse
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.gpu_check import pairs, parts
from benchmarks.gpu_check.parts import NO_GPU, Options
from benchmarks.gpu_check.rows import Row, as_json, exit_code, failed, skipped, table

Part = Callable[[Options], Iterator[Row]]

#: Seconds for one part; all of them together take less than ten minutes.
PART_LIMIT_S: Final = 120.0
#: Imported once, for all processes.
PRELOAD: Final = ("torch", "benchmarks.gpu_check.parts", "benchmarks.sides")


def main(argv: Sequence[str], preload: Sequence[str] = ()) -> int:
    """The exit code. `preload`: modules that every process imports first."""
    options, file = _arguments(argv)
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOAD, *preload])
    began = time.monotonic()
    rows = []
    for name, part in _parts(options):
        print(f"gpu-check: {name}", file=sys.stderr, flush=True)
        rows += run(name, part, options)
    print(table(rows))
    print(f"{options.device}, {time.monotonic() - began:.0f} s")
    if file is not None:
        file.write_text(json.dumps({"device": options.device, "rows": as_json(rows)}, indent=1))
    return exit_code(rows)


def _arguments(argv: Sequence[str]) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda:0", type=_device, help="cuda:N or cpu")
    parser.add_argument(
        "--base-gpu-id",
        type=int,
        metavar="N",
        help="that of the worker that is imitated (default: the device's number)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases and shorter embeddings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    given = parser.parse_args(argv)
    base = given.base_gpu_id
    if base is None:
        base = int(given.device.removeprefix("cuda:")) if given.device != "cpu" else 0
    return Options(given.device, base, given.quick), given.json


def _device(text: str) -> str:
    kind, _, index = text.partition(":")
    if text == "cpu" or (kind == "cuda" and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda:N")


def _parts(options: Options) -> Iterator[tuple[str, Part]]:
    gpu = options.device if options.has_gpu else "cuda"
    for pool, rows in (("cpu", "cpu"), (gpu, gpu), (gpu, "cpu"), ("cpu", gpu)):
        name = f"copies, pool on {pool}, rows on {rows}"
        if "cuda" in (pool, rows):
            yield name, partial(not_here, name=name)
        else:
            yield name, partial(parts.copies, pool=pool, rows=rows)
    yield "current devices", parts.current_devices
    yield "WRITEs between two processes", pairs.writes
    yield "hand-offs between two processes", pairs.hand_offs
    yield "IPC of the pool", parts.legacy_ipc
    yield "copies beside a matmul", parts.beside_compute
    yield "host memory that stays", parts.kept_memory
    yield "pinned host memory", parts.pinned_pool


def not_here(options: Options, name: str) -> Iterator[Row]:
    yield skipped(name, NO_GPU)


def run(name: str, part: Part, options: Options, limit_s: float = PART_LIMIT_S) -> list[Row]:
    """The part's rows. Its crash, its hang and its silence are failures too."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(name, part, options, theirs))
    process.start()
    theirs.close()
    rows, over_at = [], time.monotonic() + limit_s
    try:
        while ours.poll(max(0.0, over_at - time.monotonic())):
            rows.append(ours.recv())
    except EOFError:
        process.join(max(0.0, over_at - time.monotonic()))
    finally:
        ours.close()
    if process.exitcode is None:
        process.kill()
        process.join()
        return [*rows, failed(name, f"did not end within {limit_s:g} s")]
    if process.exitcode:
        return [*rows, failed(name, _ended(process.exitcode))]
    return rows or [failed(name, "checked nothing")]


def _in_process(name: str, part: Part, options: Options, connection: Connection) -> None:
    try:
        for row in part(options):
            connection.send(row)
    except Exception as error:
        connection.send(failed(name, f"{type(error).__name__}: {error!s:.300}"))


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
