# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The program as a whole: its arguments, what it loads, and a run without a graph."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.sglang_mm_resume.doctor import examination

DOCUMENT = Path(__file__).parents[2] / "docs" / "doctor.md"
RUN = [sys.executable, "-m", "dynamo.sglang_mm_resume.doctor"]
LIMIT_S = 240


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--image-size", "0"], ["--image-size", "between 1 and 8192"]),
        (["--image-size", "large"], ["--image-size", "'large'"]),
        (["--max-pairs", "-1"], ["--max-pairs"]),
        (["--processor", "node-1"], ["--processor", "host and port"]),
        (["--processor", "ftp://node-1:1"], ["--processor", "ftp"]),
        (["--local", "--graph"], ["--local", "--graph"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--discovery-backend"], ["--discovery-backend"]),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_it(
    arguments: list[str], named: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        examination.main(arguments)
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    error = err.splitlines()[-1]
    for name in named:
        assert name in error


def test_every_option_is_documented_and_no_other() -> None:
    options = set(re.findall(r"--[a-z-]+", examination._parser().format_usage()))
    rows = re.findall(r"^\| `(--[a-z-]+)", DOCUMENT.read_text(), re.MULTILINE)
    assert len(options) > 5
    assert set(rows) == options


@pytest.mark.parametrize("verbose", [True, False])
def test_only_the_report_goes_to_stdout(verbose: bool) -> None:
    program = (
        "import os, sys\n"
        "from dynamo.sglang_mm_resume.doctor import examination\n"
        f"publish = examination._take_output({verbose})\n"
        "os.write(1, b'of a library\\n')\n"
        "os.write(2, b'of another\\n')\n"
        "examination._say('what is done')\n"
        "publish('the report')\n"
        "os.write(2, b'at the end\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "the report\n"
    foreign = {"of a library", "of another", "at the end"} if verbose else set()
    assert set(run.stderr.splitlines()) == {"doctor: what is done", *foreign}


def test_it_loads_neither_torch_nor_sglang_nor_nixl() -> None:
    program = (
        "import sys; from dynamo.sglang_mm_resume.doctor import examination; "
        "print([name for name in ('torch', 'sglang', 'nixl') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_machine_is_examined_without_a_graph() -> None:
    run = subprocess.run(
        [*RUN, "--local", "--json"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    report = json.loads(run.stdout)
    assert report["exit_code"] == run.returncode
    outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
    assert outcomes["ai-dynamo"] == outcomes["nixl"] == outcomes["UCX: tcp"] == "ok"
    assert {check["section"] for check in report["checks"]} == {
        "Installation",
        "This machine",
        "UCX between two processes of this machine",
    }
    assert all(line.startswith("doctor: ") for line in run.stderr.splitlines()), run.stderr


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError(\"No module named 'aiohttp'\")")
    run = subprocess.run(
        RUN,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "not complete: No module named 'aiohttp'" in run.stderr
    assert "pip install" in run.stderr


def test_a_processor_that_is_down_is_a_failure_that_says_what_to_do() -> None:
    address = "127.0.0.1:9"  # the port of discard, which nobody serves
    run = subprocess.run(
        [*RUN, "--graph", "--processor", address],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 2
    assert f"http://{address} cannot be reached" in run.stdout
    assert "without --processor" in " ".join(run.stdout.split())


def test_discovery_that_is_down_is_a_failure_that_says_what_to_do() -> None:
    run = subprocess.run(
        [*RUN, "--graph", "--discovery-backend", "etcd"],
        env={"ETCD_ENDPOINTS": "http://127.0.0.1:9", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 2
    assert "no etcd can be reached" in run.stdout
    assert "ETCD_ENDPOINTS" in run.stdout
