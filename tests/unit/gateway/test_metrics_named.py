"""The guide, the dashboard and the alerts speak of what the product shows, and of nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.settings import Settings
from gateway.wiring import build

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs/guides/observability.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())
ALERT_TESTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.test.yaml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/penstock.json").read_text())
OF_PROMETHEUS = {"up"}
WORDS = {"by", "and", "or", "unless", "on", "ignoring", "group_left", "without", "offset", "le", "inf"}


@pytest.fixture
async def shown(tmp_path: Path) -> dict[str, str]:
    """Each metric that a process with everything shows, and its type; none is open."""
    platform = build(Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:9/0", demo=False))
    _, page = await platform.edge.metrics.page()
    await platform.dispose()
    families = text_string_to_metric_families(page.decode())
    named = {family.name + "_total" * (family.type == "counter"): family.type for family in families}
    return {name: kind for name, kind in named.items() if not name.endswith("_created")}


def _rules() -> list[dict]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def _expressions() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def _names(expression: str) -> set[str]:
    """The metrics that an expression asks for: words that are no function, no label and no keyword."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    functions = set(re.findall(r"([a-zA-Z_]\w*)\s*\(", bare))
    return {word for word in re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*", bare) if word not in WORDS | functions}


def _exists(name: str, shown: dict[str, str]) -> bool:
    if name in OF_PROMETHEUS or name in shown:
        return True
    stem, _, suffix = name.rpartition("_")
    return suffix in {"bucket", "sum", "count"} and shown.get(stem) == "histogram"


async def test_the_guides_table_is_what_the_registry_shows(shown: dict[str, str]) -> None:
    rows = re.findall(r"^\| `(\w+)(?:\{[\w,]*\})?` \| (counter|gauge|histogram|untyped) \|", GUIDE, re.MULTILINE)
    told = dict(rows)
    assert len(rows) == len(told), "each is told once"
    assert told == {name: "untyped" if kind == "unknown" else kind for name, kind in shown.items()}


@pytest.mark.parametrize(("where", "expression"), list(_expressions()))
async def test_every_expression_asks_for_what_is_shown(where: str, expression: str, shown: dict[str, str]) -> None:
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    names = _names(expression)
    assert names, f"{where}: nothing is asked for"
    unknown = {name for name in names if name not in recorded and not _exists(name, shown)}
    assert not unknown, f"{where} asks for {unknown}"


def test_the_reader_of_expressions_sees_metrics_and_nothing_else() -> None:
    asked = 'sum by (le) (rate(a_bucket{x=~"5.."}[5m])) / sum(b:c) > 0.9 * d offset 15m and time() - e > 1e3 unless up'
    assert _names(asked) == {"a_bucket", "b:c", "d", "e", "up"}


def test_the_dashboard_has_the_missions_panels() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert {"Requests by model", "p95 latency by model", "Daily cost by department", "Error rate"} <= titles


def test_every_alert_is_tested_to_fire_and_to_keep_quiet() -> None:
    cases = [case for group in ALERT_TESTS["tests"] for case in group["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case["exp_alerts"]}
    quiet = {case["alertname"] for case in cases if not case["exp_alerts"]}
    alerts = {rule["alert"] for rule in _rules() if "alert" in rule}
    assert fires == quiet == alerts


def test_every_alert_has_its_action_in_the_guide() -> None:
    told = re.findall(r"^\| `(Penstock\w+)` \| (page|ticket) \|", GUIDE, re.MULTILINE)
    assert dict(told) == {rule["alert"]: rule["labels"]["severity"] for rule in _rules() if "alert" in rule}
    assert len(told) == len(dict(told))
