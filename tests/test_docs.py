# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The documents: generated sections are current, links resolve, and what is cited exists."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from dynamo.sglang_mm_resume.core import messages
from dynamo.sglang_mm_resume.core.errors import Reason
from dynamo.sglang_mm_resume.core.layout import Layout

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "components" / "src" / "dynamo" / "sglang_mm_resume"
PROTOCOL = ROOT / "docs" / "protocol.md"
README = ROOT / "README.md"
NUM_FEATURES = 14
IS_NIGHTLY = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.nightly", re.MULTILINE)
FOLDER = ROOT / "docs"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "deploy" / name for name in ("README.md", "k8s/README.md")),
    *sorted(FOLDER.glob("*.md")),
]
SCRIPTS = sorted(FOLDER.glob("*.py"))
GENERATORS = [script for script in SCRIPTS if script.name.startswith("make_")]
# What generated figures are from.
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
# Code may cite rules and sections, and so may tests.
CITING = [
    path for folder in (PACKAGE, ROOT / "tests", ROOT / "examples") for path in folder.rglob("*.py")
]
HEADER = (
    "# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors\n"
    "# SPDX-License-Identifier: Apache-2.0\n"
)
MODELS = [
    model
    for model in vars(messages).values()
    if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel
]
# Not messages: their base, and how both sides cut a grant.
UNSENT = {messages.Message, messages.Chunk, messages.Shape}  # and what others are made of


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(script: Path, option: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, script, option], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", GENERATORS, ids=name_of)
def test_generated_sections_are_current(script: Path) -> None:
    outcome = run(script, "--check")
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("script", GENERATORS, ids=name_of)
def test_a_stale_section_is_found_and_renewed(script: Path, tmp_path: Path) -> None:
    for path in (*SCRIPTS, *DOCUMENTS, *RESULTS):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_text(stale(path.read_text()) if path in DOCUMENTS else path.read_text())
    copied = tmp_path / script.relative_to(ROOT)
    outcome = run(copied, "--check")
    assert outcome.returncode == 1
    assert "is stale: run with --write" in outcome.stderr
    assert run(copied, "--write").returncode == 0
    assert run(copied, "--check").returncode == 0


def stale(document: str) -> str:
    """`document` with an outdated line in its generated section."""
    return document.replace(": generated -->\n", ": generated -->\noutdated\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_resolve(document: Path) -> None:
    for target, anchor in relative_links(document):
        assert target.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{name_of(target)} has no heading #{anchor}"


@pytest.mark.parametrize("number", range(1, NUM_FEATURES + 1))
def test_a_feature_has_a_test_in_every_merge(number: int) -> None:
    (row,) = re.findall(rf"^\| {number} \| .*$", README.read_text(), re.MULTILINE)
    tests = re.findall(r"\((tests/\S+\.py)\)( \(\*nightly\*\))?", row.split("|")[4])
    assert not all(nightly for _, nightly in tests)
    for name, nightly in tests:
        assert bool(nightly) == bool(IS_NIGHTLY.search((ROOT / name).read_text())), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_files_that_are_named_exist(document: Path) -> None:
    text = without_blocks(document.read_text())
    for name in re.findall(r"`((?:[\w.]+/)*\w+\.py)`", text):
        assert any((folder / name).is_file() for folder in (ROOT, PACKAGE)), name


def test_every_rule_that_is_cited_is_there() -> None:
    rules = set(re.findall(r"^\*\*(R\d+) ", PROTOCOL.read_text(), re.MULTILINE))
    assert rules == {f"R{n}" for n in range(1, len(rules) + 1)}
    unknown = {
        (name_of(path), rule)
        for path in CITING
        for rule in re.findall(r"\bR[1-9]\d?\b", path.read_text())
        if rule not in rules
    }
    assert not unknown


def test_every_section_that_is_cited_is_there() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", PROTOCOL.read_text(), re.MULTILINE))
    cited = {
        section
        for path in CITING
        for section in re.findall(r"protocol\.md §(\d+)", path.read_text())
    }
    assert cited <= sections


@pytest.mark.parametrize("model", [m for m in MODELS if m not in UNSENT], ids=lambda m: m.__name__)
def test_a_message_is_described_with_its_fields_and_no_others(model: type[BaseModel]) -> None:
    row = next(row for row in protocol_rows() if f"`{model.__name__}`" in row[0])
    cells = row[1:]
    if model is Layout:  # one row per field, below
        cells = tuple(row[0] for row in protocol_rows() if row[0].strip("`") in Layout.model_fields)
    described = set(re.findall(r"`([a-z_]+)`", " ".join(cells)))
    assert described == set(model.model_fields) - {"v", "op"}


def test_every_reason_is_described() -> None:
    names = [name for cells in protocol_rows() for name in re.findall(r"`(\w+)`", cells[0])]
    assert {reason.value for reason in Reason} <= set(names)


@pytest.mark.parametrize("script", [*SCRIPTS, Path(__file__)], ids=name_of)
def test_scripts_have_the_licence_header(script: Path) -> None:
    assert script.read_text().startswith(HEADER)


def protocol_rows() -> Iterator[tuple[str, ...]]:
    """The cells of every table row in docs/protocol.md."""
    for line in PROTOCOL.read_text().splitlines():
        if line.startswith("| "):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


def relative_links(document: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of every link of `document` that does not leave the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(document.read_text())):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            yield (document.parent / path if path else document), anchor


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of `document`."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_blocks(text: str) -> str:
    """`text` without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


FAILURES = ROOT / "docs" / "failure-model.md"


def test_log_lines_that_are_quoted_exist() -> None:
    """In the document, `…` stands for what a line fills in."""
    source = re.sub(
        r"%[\w.]+|\{[^{}]*\}", "…", " ".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    )
    quoted = re.findall(r'`"([^"`]+)"`', FAILURES.read_text())
    assert len(quoted) > 5
    # What is filled in may itself be the first word, such as the role of a worker.
    unknown = [line for line in quoted if not any(form in source for form in _forms(line))]
    assert not unknown


def _forms(line: str) -> tuple[str, ...]:
    return line, re.sub(r"^\w+", "…", line), re.sub(r"^\w+ worker", "…", line)


_REQUEST_KEYS = {"", "hashes", "local", "rooms"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_metrics_that_are_named_exist(document: Path) -> None:
    from dynamo.sglang_mm_resume.metrics import CATALOGUE, PREFIX

    known = {metric.full_name.removeprefix(PREFIX) for metric in CATALOGUE}
    known |= {f"{m.name}_{part}" for m in CATALOGUE for part in ("bucket", "sum", "count")}
    text = document.read_text(encoding="utf-8")
    pairs = re.findall(r"`mm_resume_([a-z_]+)[`{]|dynamo_component_mm_resume_([a-z_]+)", text)
    named = {short or whole for short, whole in pairs} - _REQUEST_KEYS
    assert named - known == set()
    assert document != FAILURES or len(named) > 5


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_an_issue_form_is_one_that_github_shows(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(content)
    fields = [entry for entry in content["body"] if entry["type"] != "markdown"]
    assert {entry["type"] for entry in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    ids = [entry["id"] for entry in fields]
    assert len(ids) == len(set(ids)) > 0
    assert all(entry["attributes"]["label"] for entry in fields)


def test_issue_forms_and_check_lists_name_files_that_exist() -> None:
    assert len(FORMS) == 3
    named = r"\b(?:docs/[\w.-]+\.\w+|README\.md|CHANGELOG\.md)"
    for path in (ROOT / ".github").rglob("*.*"):
        for name in re.findall(named, path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"
