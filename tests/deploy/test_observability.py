# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""deploy/observability: rules that fire when they should, and files that fit the metrics there are.

That a real scrape has all of these metrics is a test of tests/integration/.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observability import make_dashboard
from deploy.observability.panels import PANELS, PREFIX
from dynamo.sglang_mm_resume.config import Settings
from dynamo.sglang_mm_resume.doctor.graph import COMPONENTS
from dynamo.sglang_mm_resume.metrics import CATALOGUE, Metric
from tests.deploy.alert_cases import CASES, Case, Series

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "deploy" / "observability"
RULES = OBSERVABILITY / "rules" / "mm-resume.yaml"
KUBERNETES = OBSERVABILITY / "kubernetes"
DEADLINE_S = 60

GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {r["alert"]: r for group in GROUPS for r in group["rules"] if "alert" in r}
RECORDED = {r["record"]: r["expr"] for group in GROUPS for r in group["rules"] if "record" in r}
EXPRESSIONS = [
    *(rule["expr"] for rule in ALERTS.values()),
    *RECORDED.values(),
    *(query.expr for panel in PANELS for query in panel.queries),
]
SEVERITIES = {"critical", "warning", "info"}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed: it is part of Debian's package prometheus",
)


def promtool(*arguments: str | Path, cwd: Path = ROOT) -> None:
    """Run it; what it complains about fails the test."""
    outcome = subprocess.run(
        ["promtool", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=cwd,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


# --- Rules ---


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", RULES)


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", "prometheus.yaml", cwd=OBSERVABILITY)


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_an_alert_fires_when_it_should_and_only_then(case: Case, tmp_path: Path) -> None:
    tests = [firing(case, series) for series in case.fires]
    tests += [silent(case, series) for series in case.quiet]
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": groups_of(case.alert)}))
    document = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests}
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", path)


def test_every_alert_has_a_case() -> None:
    assert sorted(ALERTS) == sorted(case.alert for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_a_case_knows_whether_its_alert_waits(case: Case) -> None:
    assert ("for" in ALERTS[case.alert]) == (case.pending_at is not None)


def groups_of(alert: str) -> list[dict[str, Any]]:
    """What is recorded, and one alert: a day of all rules takes promtool ten seconds."""
    return [GROUPS[0], {"name": "alert", "rules": [ALERTS[alert]]}]


def firing(case: Case, series: Series) -> dict[str, Any]:
    """Pending first, where the alert waits, then firing, with all that it says."""
    rule = ALERTS[case.alert]
    alert = {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    test = unit_test(case, series, [alert])
    if case.pending_at is not None:
        pending = f'count(ALERTS{{alertname="{case.alert}",alertstate="pending"}})'
        test["promql_expr_test"] = [
            {
                "expr": pending,
                "eval_time": f"{case.pending_at}m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            }
        ]
    return test


def silent(case: Case, series: Series) -> dict[str, Any]:
    return unit_test(case, series, [])


def unit_test(case: Case, series: Series, alerts: list[dict[str, Any]]) -> dict[str, Any]:
    """One test of promtool's: these series, and at that minute these alerts."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": alerts}
        ],
    }


@pytest.mark.parametrize("rule", ALERTS.values(), ids=list(ALERTS))
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("MmResume")
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    # The figures of an alert are in its summary; what to do does not depend on them.
    assert "{{" not in rule["annotations"]["description"]
    assert len(rule["annotations"]["description"]) > 100


@pytest.mark.parametrize("rule", ALERTS.values(), ids=list(ALERTS))
def test_the_runbook_of_an_alert_is_there(rule: dict[str, Any]) -> None:
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", ALERTS.values(), ids=list(ALERTS))
def test_settings_and_panels_that_an_alert_names_exist(rule: dict[str, Any]) -> None:
    description = rule["annotations"]["description"]
    source = (ROOT / "README.md").read_text()
    for name in re.findall(r"SGLANG_\w+|--[a-z][a-z-]+", description):
        assert f"`{name}`" in source or f"{name} " in source, name
    titles = {panel.title for panel in PANELS}
    assert set(re.findall(r'[Pp]anel "([^"]+)"', description)) <= titles


# --- Metrics ---


def test_the_metrics_of_all_expressions_are_in_the_catalogue() -> None:
    known = {name for metric in CATALOGUE for name in series_names(metric)}
    named = {name for expression in EXPRESSIONS for name in metrics_of(expression)}
    assert len(named) > 30
    assert named <= known


def test_recorded_series_that_are_used_are_recorded() -> None:
    used = {
        name
        for expression in EXPRESSIONS
        for name in re.findall(r"\b(?:graph|worker):[\w:]+", expression)
    }
    assert used <= set(RECORDED)


def test_label_values_of_all_expressions_are_ones_that_occur() -> None:
    found = {match for expression in EXPRESSIONS for match in matchers(expression)}
    assert len(found) > 15
    unknown = [match for match in found if match[2] not in label_values(*match[:2])]
    assert not unknown


def test_every_metric_is_on_the_dashboard_or_left_out_on_purpose() -> None:
    shown = {
        metric.name
        for metric in CATALOGUE
        if any(set(series_names(metric)) & set(metrics_of(e)) for e in EXPRESSIONS)
    }
    # Counted otherwise on the dashboard, or of use only to those who look closer.
    left_out = {
        *("encodes", "encodes_shared", "items", "rounds", "bytes", "bytes_assembled"),
        *("resumes", "embeddings_offered", "peak_transfers"),
    }
    assert {metric.name for metric in CATALOGUE} - shown == left_out


def series_names(metric: Metric) -> list[str]:
    if metric.kind == "histogram":
        return [f"{metric.full_name}_{part}" for part in ("bucket", "sum", "count")]
    return [metric.full_name]


def metrics_of(expression: str) -> list[str]:
    return re.findall(rf"{PREFIX}\w+", expression)


def matchers(expression: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and each value of every matcher; those with variables are left out."""
    for name, inside in re.findall(r"([a-z][\w:]+)\{([^}]*)\}", expression):
        for label, values in re.findall(r'(\w+)[=!]~?"([^"]*)"', inside):
            if "$" not in values:
                yield from ((name, label, value) for value in values.split("|"))


def label_values(name: str, label: str) -> set[str]:
    """What a label of a metric, or of what is recorded of it, may be."""
    name = metrics_of(RECORDED.get(name, name))[0]
    if label == "dynamo_component":
        return set(COMPONENTS.values())
    if label == "name":
        return set(Settings().limits)
    if label in ("peer", "role"):
        return set(COMPONENTS)
    (metric,) = [metric for metric in CATALOGUE if name in series_names(metric)]
    return set(metric.labels[label])


# --- The dashboard ---


def test_generated_files_are_current() -> None:
    outcome = generate("--check")
    assert outcome.returncode == 0, outcome.stderr


def test_a_stale_file_is_found_and_renewed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dashboard.json"
    path.write_text("{}")
    monkeypatch.setattr(make_dashboard, "FILES", {path: lambda: "new"})
    assert make_dashboard.main(["--check"]) == 1
    assert f"{path} is stale: run python -m" in capsys.readouterr().err
    assert make_dashboard.main(["--write"]) == 0
    assert path.read_text() == "new"
    assert make_dashboard.main(["--check"]) == 0


def test_the_dashboard_is_printed_by_default() -> None:
    assert json.loads(generate().stdout) == make_dashboard.dashboard()


def test_panels_have_numbers_and_places_of_their_own() -> None:
    panels = make_dashboard.dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter(cell for panel in panels for cell in cells_of(panel["gridPos"]))
    assert max(cells.values()) == 1
    assert {x for x, _ in cells} == set(range(24))
    for panel in panels:
        letters = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(letters)) == len(letters)


@needs_promtool
def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    """Read as recording rules, with a value for each of Grafana's variables."""
    rules = [
        {"record": f"panel:{i}", "expr": expression.replace("$__rate_interval", "1m")}
        for i, expression in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", path)


def test_variables_of_the_dashboard_are_declared() -> None:
    dashboard = make_dashboard.dashboard()
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used - {"__rate_interval"} == declared


def cells_of(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.observability.make_dashboard", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        cwd=ROOT,
    )


# --- Kubernetes ---


def test_the_pod_monitor_selects_the_workers_of_our_manifests() -> None:
    """The type of a component becomes the pod's label; a worker's port is named `system`."""
    monitor = yaml.safe_load((KUBERNETES / "podmonitor.yaml").read_text())
    expressions = {e["key"]: e["values"] for e in monitor["spec"]["selector"]["matchExpressions"]}
    selected = set(expressions["nvidia.com/dynamo-component-type"])
    components = list(components_of_manifests())
    assert components
    for path, component in components:
        kind = component.get("type", "worker")
        assert kind in selected | {"frontend", "planner"}, f"{path}: {component['name']}"
    assert [e["port"] for e in monitor["spec"]["podMetricsEndpoints"]] == ["system"]


def components_of_manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted((ROOT / "deploy" / "k8s").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            if document and document.get("kind") == "DynamoGraphDeployment":
                for component in document["spec"]["components"]:
                    yield path, component


def test_the_rules_in_kubernetes_are_the_rules() -> None:
    rule = yaml.safe_load((KUBERNETES / "prometheus-rule.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"]["groups"] == GROUPS
