# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures that go through SGLang's vision tower together get the rows that they get singly."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TRAINED_MODEL
from tests.support.tower_batches import SIZES

DEADLINE_S = 120
ARGUMENTS = (
    *("--model-path", str(TRAINED_MODEL)),
    *("--device", "cpu"),
    *("--dtype", "float32"),
    *("--mm-attention-backend", "sdpa"),
)


@pytest.mark.full
@pytest.mark.timeout(DEADLINE_S + 30)
def test_rows_of_a_batch_are_those_of_its_pictures() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tower_batches", *ARGUMENTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    width = found["shapes"][0][0][1]
    assert found["shapes"] == [[[tokens, width]] * 2 for tokens in found["tokens"]]
    assert found["batches"] == [len(SIZES), 1]
    assert found["difference"] < 1e-5 * found["largest"]
