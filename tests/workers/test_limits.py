# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""What the door lets in passes behind it: the limits of bodies and of messages agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dynamo._core
import pytest

from dynamo.sglang_mm_resume.args import BadArgument
from dynamo.sglang_mm_resume.workers import start_frontend
from dynamo.sglang_mm_resume.workers.limits import (
    BODY_ENV,
    DEFAULT_BODY_MIB,
    DEFAULT_MESSAGE_BYTES,
    MESSAGE_ENV,
    max_body_mib,
    raise_message_limit,
)
from dynamo.sglang_mm_resume.workers.relay import DYNAMO_REQUEST_ID

ROOT = Path(__file__).parent.parent.parent
#: Where an operator may set a limit.
DEPLOYMENTS = [
    path
    for folder in ("deploy", "examples")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".yaml", ".sh", ".md", ".py"} or path.name == "Dockerfile"
]
PACKAGE = ROOT / "components" / "src" / "dynamo" / "sglang_mm_resume"
WORKERS = ["processor", "encode_worker", "prefill_worker", "decode_worker"]


def test_dynamo_knows_the_names() -> None:
    """They are read in Rust; a release that renames one would leave its own default in force."""
    binary = Path(dynamo._core.__file__).read_bytes()
    for name in (BODY_ENV, MESSAGE_ENV, DYNAMO_REQUEST_ID, *start_frontend.PATH_ENVS):
        assert name.encode() in binary, name


def test_the_default_is_set_where_nobody_has_set_it() -> None:
    environ: dict[str, str] = {}
    raise_message_limit(environ)
    assert environ == {MESSAGE_ENV: str(DEFAULT_MESSAGE_BYTES)}
    environ = {MESSAGE_ENV: "7"}
    raise_message_limit(environ)
    assert environ == {MESSAGE_ENV: "7"}


def test_the_limit_of_a_body_is_dynamos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BODY_ENV, raising=False)
    monkeypatch.delenv(MESSAGE_ENV, raising=False)
    assert max_body_mib() == DEFAULT_BODY_MIB == 45
    monkeypatch.setenv(BODY_ENV, "7")
    assert max_body_mib() == 7
    monkeypatch.setenv(BODY_ENV, "many")
    with pytest.raises(BadArgument, match="DYN_HTTP_BODY_LIMIT_MB: 'many'"):
        max_body_mib()


@pytest.mark.parametrize(
    ("body_mib", "message_bytes"), [("45", str(2**25)), ("100", str(2**30)), ("45", "much")]
)
def test_limits_that_contradict_each_other(
    body_mib: str, message_bytes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BODY_ENV, body_mib)
    monkeypatch.setenv(MESSAGE_ENV, message_bytes)
    with pytest.raises(BadArgument, match=MESSAGE_ENV):
        max_body_mib()


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_deployed_leaves_the_limits_to_the_processes(path: Path) -> None:
    """Every process of ours has the default, so that no list of variables can lag behind."""
    text = path.read_text()
    for env in (BODY_ENV, MESSAGE_ENV):
        assert not re.search(rf"{env}[\"']?\s*[:=]", text), env
    assert not re.search(r"-m[\s,]+dynamo\.frontend\b", text), "it has Dynamo's default, 32 MiB"


@pytest.mark.parametrize("module", WORKERS)
def test_all_workers_begin_alike(module: str) -> None:
    assert f"{PACKAGE.name}.workers.run import" in (PACKAGE / f"{module}.py").read_text()


@pytest.mark.parametrize("module", ["frontend", "processor"])
def test_every_process_has_the_default_before_dynamo_s_runtime(module: str) -> None:
    """At the first use of the runtime, whatever it is, the variable is there."""
    program = (
        "import os, runpy, sys\n"
        "import dynamo.runtime, dynamo.frontend.main, uvloop\n"
        "def stop(*_, **__):\n"
        f"    print('limit', os.environ.get({MESSAGE_ENV!r}))\n"
        "    os._exit(0)\n"
        "uvloop.run = stop\n"
        "dynamo.frontend.main.main = stop\n"
        f"sys.argv = ['x', '--model-path', {str(ROOT / 'examples/demo_model/weights')!r}]\n"
        f"if {module!r} == 'frontend': sys.argv = ['x', '--http-host', '127.0.0.1', "
        "'--http-port', '0']\n"
        f"runpy.run_module('dynamo.sglang_mm_resume.{module}', run_name='__main__')\n"
    )
    environ = {k: v for k, v in os.environ.items() if k != MESSAGE_ENV}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environ
    )
    assert f"limit {DEFAULT_MESSAGE_BYTES}" in answer.stdout, answer.stderr[-2000:]
