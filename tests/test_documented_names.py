# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Every flag and environment name in the documents is read by somebody: us, Dynamo or SGLang."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.args import BOOTSTRAP_ADDR_ENV, DEFAULT_TOKENS, build_parser
from dynamo.sglang_mm_resume.config import Settings, spec_of
from dynamo.sglang_mm_resume.workers import limits, start_frontend, start_processor
from dynamo.sglang_mm_resume.workers.role import MODE_ENV

ROOT = Path(__file__).parents[1]
MIGRATING = ROOT / "docs" / "migrating.md"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "deploy" / name for name in ("README.md", "k8s/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

#: In docs/migrating.md only: of the fork of SGLang that the settings come from. Nobody reads them.
FORMER = {
    "--disaggregation-bootstrap-addr",
    "--vision",
    "--prefill",
    "SGLANG_EMBEDDING_CACHE_BLOCK_SIZE",
    "SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE",
}
#: Commands of other programs, with the lines that they go on in.
FOREIGN = re.compile(
    r"(?:^ *|`)(?:kubectl|docker|helm|promtool|curl|git|pip|uv|etcd|pytest)\b(?:.*\\\n)*[^`\n]*",
    re.MULTILINE,
)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
ENV = re.compile(r"\b(?:SGLANG|DYN)_[A-Z0-9_]+")
OUR_ENV = {
    MODE_ENV,
    BOOTSTRAP_ADDR_ENV,
    DEFAULT_TOKENS.env,
    *(spec.env for spec in start_frontend.OPTIONS),
    *(limits.BODY_ENV, limits.MESSAGE_ENV),  # of Dynamo's Rust; tests/workers/test_limits.py
    *(spec_of(name).env for name in Settings.model_fields),
}


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Of every command line that a document may mean."""
    short = {"--tp"}  # of --tp-size, as Dynamo's own scripts write it
    return {*_flags_of_workers(), *_flags_of_scripts(), *short, "--help"}


@pytest.fixture(scope="module")
def env() -> set[str]:
    """Ours, and every name that Dynamo's or SGLang's own files have in them."""
    return OUR_ENV | set(_names_in_upstream())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_exist(document: Path, flags: set[str]) -> None:
    assert _unknown(FLAG, document, flags) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_environment_names_exist(document: Path, env: set[str]) -> None:
    assert _unknown(ENV, document, env) == set()


def test_former_names_are_former(flags: set[str], env: set[str]) -> None:
    """One that somebody reads again belongs into the other column."""
    assert FORMER & (flags | env) == set()


def test_every_name_of_the_original_documents_is_told() -> None:
    """What somebody has set before must be found in docs/migrating.md."""
    told = set(ENV.findall(MIGRATING.read_text()))
    original = {name for name in OUR_ENV if name.startswith("SGLANG_")}
    assert original <= told


def _unknown(pattern: re.Pattern[str], document: Path, known: set[str]) -> set[str]:
    text = FOREIGN.sub("", document.read_text())
    former = FORMER if document == MIGRATING else set()
    return {
        name
        for name in pattern.findall(text)
        if name not in known | former and not _is_family(name, known)
    }


def _is_family(name: str, known: Iterable[str]) -> bool:
    """`--mm-resume-max-*` and `DYN_MM_*` stand for several."""
    return name[-1] in "-_" and any(other.startswith(name) for other in known)


def _flags_of_workers() -> Iterator[str]:
    from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup
    from dynamo.frontend.frontend_args import FrontendArgGroup
    from dynamo.sglang.backend_args import DynamoSGLangArgGroup
    from sglang.srt.server_args import ServerArgs

    theirs = argparse.ArgumentParser(conflict_handler="resolve")
    for group in (DynamoRuntimeArgGroup(), DynamoSGLangArgGroup(), FrontendArgGroup()):
        parser = argparse.ArgumentParser(conflict_handler="resolve")
        group.add_arguments(parser)
        yield from _options(parser)
    ServerArgs.add_cli_args(theirs)
    yield from _options(theirs)
    yield from _options(build_parser())
    yield from _options(start_processor.build_parser())
    yield from (*(spec.flag for spec in start_frontend.OPTIONS), "--no-check-content", "--role")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings


def _flags_of_scripts() -> Iterator[str]:
    """Of what is run from this repository, and of the programs that its documents run."""
    import dynamo.runtime
    from sglang.benchmark import serving

    planner = Path(dynamo.runtime.__file__).parents[1] / "planner" / "__main__.py"
    sources = [planner, Path(serving.__file__)]
    for folder in ("examples", "benchmarks", "docs", "tests", "components", "deploy"):
        sources += [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.sh")]
    for path in sources:
        if path != Path(__file__):
            yield from re.findall(r'add_argument\(\s*"(--[\w-]+)"', path.read_text())
            yield from re.findall(r"^\s+(--[\w-]+)\) ", path.read_text(), re.MULTILINE)


def _names_in_upstream() -> Iterator[str]:
    """Dynamo reads many of its own in the compiled part."""
    import dynamo.runtime
    import sglang

    roots = [Path(dynamo.runtime.__file__).parents[1], Path(sglang.__file__).parent / "srt"]
    pattern = re.compile(ENV.pattern.encode())
    for root in roots:
        for path in (*root.rglob("*.py"), *root.glob("*.so")):
            yield from (name.decode() for name in pattern.findall(path.read_bytes()))
