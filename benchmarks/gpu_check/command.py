# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Run every part, print the table, exit 1 on any failure."""

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.gpu_check.rows import Options, Row, as_json, exit_code, failed, table

_PARTS: Final = "benchmarks.gpu_check.parts"
_PAIRS: Final = "benchmarks.gpu_check.pairs"

#: Seconds for one part; all of them together take less than ten minutes.
PART_LIMIT_S: Final = 120.0
#: Imported once, for all processes.
PRELOAD: Final = ("torch", _PARTS, "benchmarks.sides")


@dataclass(frozen=True, slots=True)
class Part:
    """`path`: `module:function`, which this process does not import: it needs no torch."""

    name: str
    path: str
    arguments: Mapping[str, str] = field(default_factory=dict)


def main(argv: Sequence[str], preload: Sequence[str] = ()) -> int:
    """The exit code. `preload`: modules that every process imports first."""
    given = _arguments(argv)
    options = Options(given.device, given.base_gpu_id, given.quick)
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no part of the table
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOAD, *preload])
    began = time.monotonic()
    rows = []
    for part in (each for each in _parts(options) if given.only in each.name):
        print(f"gpu-check: {part.name}", file=sys.stderr, flush=True)
        rows += run(part, options)
    print(table(rows), file=report)
    print(f"{options.device}, {time.monotonic() - began:.0f} s", file=report, flush=True)
    if given.json is not None:
        given.json.write_text(
            json.dumps({"device": options.device, "rows": as_json(rows)}, indent=1)
        )
    return exit_code(rows)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
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
    parser.add_argument("--only", default="", metavar="TEXT", help="parts with this in their name")
    given = parser.parse_args(argv)
    if given.base_gpu_id is None:
        given.base_gpu_id = int(given.device.partition(":")[2] or 0)
    return given


def _device(text: str) -> str:
    kind, _, index = text.partition(":")
    if text == "cpu" or (kind == "cuda" and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda:N")


def _parts(options: Options) -> Iterator[Part]:
    gpu = options.device if options.has_gpu else "cuda"
    for pool, rows in (("cpu", "cpu"), (gpu, gpu), (gpu, "cpu"), ("cpu", gpu)):
        name = f"copies, pool on {pool}, rows on {rows}"
        if "cuda" in (pool, rows):
            yield Part(name, f"{_PARTS}:not_here", {"name": name})
        else:
            yield Part(name, f"{_PARTS}:copies", {"pool": pool, "rows": rows})
    yield Part("current devices", f"{_PARTS}:current_devices")
    yield Part("WRITEs between two processes", f"{_PAIRS}:writes")
    yield Part("hand-offs between two processes", f"{_PAIRS}:hand_offs")
    yield Part("IPC of the pool", f"{_PARTS}:legacy_ipc")
    yield Part("copies beside a matmul", f"{_PARTS}:beside_compute")
    yield Part("host memory that stays", f"{_PARTS}:kept_memory")
    yield Part("pinned host memory", f"{_PARTS}:pinned_pool")


def run(part: Part, options: Options, limit_s: float = PART_LIMIT_S) -> list[Row]:
    """The part's rows. Its crash, its hang and its silence are failures too."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(part, options, theirs))
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
        return [*rows, failed(part.name, f"did not end within {limit_s:g} s")]
    if process.exitcode:
        return [*rows, failed(part.name, _ended(process.exitcode))]
    return rows or [failed(part.name, "checked nothing")]


def _in_process(part: Part, options: Options, connection: Connection) -> None:
    module, _, name = part.path.partition(":")
    try:
        check: Callable[..., Iterator[Row]] = getattr(importlib.import_module(module), name)
        for row in check(options, **part.arguments):
            connection.send(row)
    except Exception as error:
        connection.send(failed(part.name, f"{type(error).__name__}: {error!s:.300}"))


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
