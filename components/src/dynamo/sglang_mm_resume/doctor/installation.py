# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Is what is installed what this component is made for? Versions, and torch's view of the GPUs.

What fits is not written here again: it is read from the metadata of the distributions, which say
what they require of each other.
"""

import platform
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dynamo.sglang_mm_resume.doctor.gpus import TorchFacts
from dynamo.sglang_mm_resume.doctor.report import Result, fail, ok, skip, warn
from dynamo.sglang_mm_resume.video_library import INSTALL as INSTALL_VIDEOS

OURS: Final = "dynamo-sglang-mm-resume"
INSTALL: Final = f'pip install "ai-dynamo[sglang]" {OURS}'

#: Distribution to the one, and its extra, that says which version it must be.
REQUIRED_BY: Final = {
    "ai-dynamo": (OURS, ""),
    "nixl": (OURS, ""),
    "sglang": ("ai-dynamo", "sglang"),
    "torch": ("sglang", ""),
}

VersionOf = Callable[[str], str]
RequiresOf = Callable[[str], Iterable[str] | None]


def python(running: str = platform.python_version(), wanted: str | None = None) -> Result:
    """`wanted`: a specifier such as `>=3.11`; None reads that of this component."""
    if wanted is None:
        try:
            wanted = metadata.metadata(OURS)["Requires-Python"] or ""
        except metadata.PackageNotFoundError:
            wanted = ""
    if SpecifierSet(wanted).contains(running, prereleases=True):
        return ok("python", f"{running} ({wanted})", version=running)
    return fail(
        "python",
        f"{running}, and {wanted} is needed",
        f"make an environment with python {wanted}",
        version=running,
    )


def component(version: VersionOf = metadata.version) -> Result:
    """This component itself: without its metadata, SGLang does not find its plug-ins."""
    try:
        found = version(OURS)
    except metadata.PackageNotFoundError:
        return fail(OURS, "not installed: it runs from a folder of sources", "pip install .")
    return ok(OURS, found, version=found)


def package(
    name: str,
    version: VersionOf = metadata.version,
    requires: RequiresOf = metadata.requires,
) -> Result:
    """A distribution whose version another one prescribes."""
    by, extra = REQUIRED_BY[name]
    try:
        found = version(name)
    except metadata.PackageNotFoundError:
        return _missing(name)
    wanted = _specifier(name, by, extra, requires)
    if wanted is None:
        return skip(name, f"{found}; {by}, which would say what fits, is not there", version=found)
    if wanted.contains(found, prereleases=True):
        return ok(name, f"{found} ({wanted or 'any'})", version=found)
    source = f"{by}[{extra}]" if extra else by
    return fail(
        name,
        f"{found}, but {source} needs {name}{wanted}",
        f'pip install "{name}{wanted}"',
        version=found,
    )


def nixl_build(
    cuda: str | None, version: VersionOf = metadata.version, name: str = "NIXL's CUDA"
) -> Result:
    """NIXL comes in one build per CUDA release, which must be torch's. `cuda`: such as `13.0`."""
    if cuda is None:
        return skip(name, "torch is built without CUDA: any build of NIXL serves")
    major = cuda.partition(".")[0]
    build = f"nixl-cu{major}"
    try:
        found = version(build)
    except metadata.PackageNotFoundError:
        return fail(
            name,
            f"torch is built for CUDA {cuda}, and {build} is not installed",
            f'pip install "nixl[cu{major}]"',
        )
    return ok(name, f"{build} {found}, as torch's {cuda}", version=found)


def gpu(facts: TorchFacts, devices: list[str], driver: str | None) -> Result:
    """Does torch see what the machine has? `devices`: files such as /dev/nvidia0."""
    figures = {
        "gpus": [gpu.model_dump() for gpu in facts.gpus],
        "driver": driver,
        "torch_cuda": facts.cuda,
    }
    if facts.gpus:
        names = ", ".join(f"{gpu.name} ({gpu.memory_mib / 1024:.0f} GiB)" for gpu in facts.gpus)
        return ok("GPU", f"{names}; driver {driver or 'unknown'}", **figures)
    if not devices:
        return skip("GPU", "no NVIDIA device here: workers of this machine use its CPU", **figures)
    if facts.cuda is None:
        action = "install torch's build for CUDA; this one is for the CPU alone"
    else:
        action = (
            f"install a driver that knows CUDA {facts.cuda}; in a container, request the GPU "
            "(nvidia.com/gpu) and leave CUDA_VISIBLE_DEVICES as it is given"
        )
    text = f"{', '.join(devices)} are there, and torch sees no GPU (driver {driver or 'unknown'})"
    return fail("GPU", text, action, **figures)


def videos(facts: TorchFacts) -> Result:
    """Frames of compressed videos; sequences of images need nothing."""
    if facts.videos:
        return ok("videos", "compressed videos can be decoded")
    return warn("videos", "compressed videos are refused: no library decodes them", INSTALL_VIDEOS)


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The release of NVIDIA's kernel driver; None without one."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", path.read_text())
    except OSError:
        return None
    return found.group() if found else None


def _missing(name: str) -> Result:
    if name == "sglang":
        return warn(
            name,
            "not installed",
            f"{INSTALL}: encode, prefill and decode workers need it, a processor does not",
        )
    return fail(name, "not installed", INSTALL)


def _specifier(name: str, by: str, extra: str, requires: RequiresOf) -> SpecifierSet | None:
    """What `by` demands of `name`; None where `by` is missing or demands nothing."""
    try:
        lines = requires(by) or ()
    except metadata.PackageNotFoundError:
        return None
    for requirement in map(Requirement, lines):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if requirement.name == name and applies:
            return requirement.specifier
    return None
