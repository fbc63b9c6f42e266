# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pools, copies, writes and the vision tower on a GPU: are they right, and how fast?

    python -m benchmarks.gpu_check [--device cuda] [--only copies,writes]

Uses the workers' own code: `PoolMemory`, `NixlAgent`, `VisionEncoder`. Every section compares bytes
and prints figures; a section that fails does not stop the others. Exit code 0: all are right.
`--device cpu` does the same between pools in host memory, to try the script itself.
"""

import argparse
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch

from benchmarks.gpu_check import copies, driver, tower, writes
from benchmarks.gpu_check.cases import Failed, Figure, Skipped

Section = Callable[[torch.device], Iterator[Figure]]

SECTIONS: Final[dict[str, Section]] = {
    "driver": driver.section,
    "copies": copies.section,
    "busy": copies.busy,
    "writes": writes.section,
    "tower": tower.section,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections; 1 if one has failed."""
    options = _parse(arguments)
    device: torch.device = options.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{device} ({name}), torch {torch.__version__}", flush=True)
    outcomes = {section: _run(section, device) for section in options.only}
    print(", ".join(f"{section}: {outcome}" for section, outcome in outcomes.items()))
    return int("FAIL" in outcomes.values())


def _run(name: str, device: torch.device) -> str:
    began = time.monotonic()
    outcome = "ok"
    print(f"\n{name}", flush=True)
    try:
        for figure in SECTIONS[name](device):
            print(f"  {figure.name:<44} {figure.value}", flush=True)
    except Skipped as reason:
        outcome = "skip"
        print(f"  skip: {reason}")
    except Failed as error:
        outcome = "FAIL"
        print(f"  FAIL: {error}")
    except Exception:  # a fault of CUDA, of NIXL, of ours: the other sections are run all the same
        outcome = "FAIL"
        print(f"  FAIL: {traceback.format_exc()}")
    print(f"  {outcome} after {time.monotonic() - began:.1f} s", flush=True)
    return outcome


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Prove that pools, copies and writes are right on this machine's GPU.",
    )
    parser.add_argument("--device", type=_device, default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument(
        "--only",
        type=_sections,
        default=tuple(SECTIONS),
        help="some sections: " + ",".join(SECTIONS),
    )
    return parser.parse_args(arguments)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"torch sees no {text} here; --device cpu tries the script"
        )
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"there are {torch.cuda.device_count()} GPUs, no {text}")
    return torch.device("cuda", index)


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SECTIONS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: none of {', '.join(SECTIONS)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
