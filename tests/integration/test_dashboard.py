# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""The dashboard and the rules on a real scrape of the running graph."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
import yaml

from deploy.observability import render, scene
from deploy.observability.panels import PANELS, PREFIX
from examples.local_stack import LocalStack
from tests.support.client import ask, data_url
from tests.support.deployments import MODEL_NAME, TRAINED
from tests.support.pictures import patchwork
from tests.support.worker_status import get, wait_until

DEPLOYMENT = TRAINED
RULES = Path(__file__).parents[2] / "deploy" / "observability" / "rules" / "mm-resume.yaml"
SCRAPE_S = 0.5
WINDOW_S = 5.0
DEADLINE_S = 30.0

#: Panels that show nothing while nothing goes wrong, or without the KV router.
QUIET = {"Errors by kind", "Refusals by kind", "Prompts cached where they went"}


def expressions() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    return [*rules, *(query.expr for panel in PANELS for query in panel.queries)]


def test_a_real_scrape_has_every_metric_that_is_named(stack: LocalStack) -> None:
    scraped = {
        name
        for url in stack.worker_urls.values()
        for name in re.findall(rf"^({PREFIX}\w+)", get(f"{url}/metrics").text, re.MULTILINE)
    }
    named = {name for expr in expressions() for name in re.findall(rf"{PREFIX}\w+", expr)}
    assert len(named) > 30
    assert named <= scraped


@pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed: it is a package of Debian's",
)
def test_every_panel_has_something_to_show(stack: LocalStack, tmp_path: Path) -> None:
    started = time.time()
    with scene.prometheus(list(stack.worker_urls.values()), tmp_path, SCRAPE_S) as url:

        def span() -> render.Span:
            return render.Span(started, time.time(), WINDOW_S)

        def empty() -> set[str]:
            return {
                panel.title
                for panel in PANELS
                if not any(render.evaluate(url, query, span()) for query in panel.queries)
            }

        def num_scraped() -> int:
            answer = get(f"{url}/api/v1/query?query=count(up==1)").json()
            return sum(int(found["value"][1]) for found in answer["data"]["result"])

        # A picture whose pieces of work all happen between two scrapes of every worker.
        assert wait_until(lambda: num_scraped() == len(stack.worker_urls), DEADLINE_S)
        pictures = [data_url(patchwork(2, 4, 4))]
        answer = ask(stack.base_url, MODEL_NAME, pictures, "What is this?", max_tokens=4)
        assert answer.ok, answer.error_message
        assert wait_until(lambda: empty() <= QUIET, DEADLINE_S), empty()
        render.page(url, span(), "test", tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
