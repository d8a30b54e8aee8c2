"""What is watched exists: scraped addresses, and every metric in a dashboard, an alert or the manual."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.service_settings import SERVICES

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_MANUAL = (_ROOT / "docs" / "operations.md").read_text()
_KINDS = ("Counter", "Gauge", "Histogram", "Summary")
_SUFFIXES = re.compile(r"_(bucket|sum|count)$")
# What Prometheus and its client make by themselves.
_LABELS_OF_PROMETHEUS = {"job", "instance", "le"}
_METRIC = re.compile(r"\borders_backup_\w+")
_MATCHERS = re.compile(r"\b(orders_backup_\w+)\{([^}]*)\}")


@dataclass(frozen=True)
class Metric:
    kind: str
    labels: frozenset[str]


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _declared() -> Iterator[tuple[str, Metric]]:
    """The metrics of the production code, read from its source: importing them would register them."""
    for path in [*(_ROOT / "services").rglob("*.py"), *(_ROOT / "shared").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(args=[ast.Constant(value=str(name)), *more]) if _called(node) in _KINDS:
                    labels: list[str] = [
                        label
                        for given in [*more[1:2], *(word.value for word in node.keywords if word.arg == "labelnames")]
                        for label in ast.literal_eval(given)
                    ]
                    yield name, Metric(_called(node), frozenset(labels))


_METRICS: Mapping[str, Metric] = dict(_declared())


def _exists(name: str) -> bool:
    metric = _METRICS.get(_SUFFIXES.sub("", name))
    return name in _METRICS if metric is None or metric.kind != "Histogram" else _SUFFIXES.search(name) is not None


def _alerts() -> list[Mapping[str, Any]]:
    groups = yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _dashboard() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((_DEPLOY / "grafana" / "dashboards" / "orders-backup.json").read_text())
    return found


def _panels() -> list[Mapping[str, Any]]:
    return [panel for panel in _dashboard()["panels"] if panel["type"] != "row"]


def _expressions() -> list[str]:
    return [alert["expr"] for alert in _alerts()] + [
        target["expr"] for panel in _panels() for target in panel["targets"]
    ]


def test_there_is_something_to_watch() -> None:
    assert _METRICS
    assert all(name.startswith("orders_backup_") for name in _METRICS)


@pytest.mark.parametrize("expression", _expressions())
def test_every_metric_in_a_dashboard_or_alert_is_one_that_a_service_has(expression: str) -> None:
    assert [name for name in _METRIC.findall(expression) if not _exists(name)] == []


@pytest.mark.parametrize("expression", _expressions())
def test_every_label_that_is_asked_for_is_one_of_the_metric(expression: str) -> None:
    for name, matchers in _MATCHERS.findall(expression):
        asked = set(re.findall(r"(\w+)\s*(?:=|!)", matchers))
        assert asked <= _METRICS[_SUFFIXES.sub("", name)].labels | _LABELS_OF_PROMETHEUS


@pytest.mark.parametrize("name", sorted(_METRICS))
def test_the_manual_says_what_to_do_about_every_metric(name: str) -> None:
    assert f"`{name}`" in _MANUAL


def test_the_manual_names_no_metric_that_is_gone() -> None:
    assert set(_METRIC.findall(_MANUAL)) <= _METRICS.keys()


def test_every_metric_is_seen_in_a_dashboard() -> None:
    seen = {_SUFFIXES.sub("", name) for expression in _expressions() for name in _METRIC.findall(expression)}

    assert _METRICS.keys() - seen == set()


@pytest.mark.parametrize("alert", _alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: Mapping[str, Any]) -> None:
    page, _, heading = alert["annotations"]["runbook"].partition("#")

    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"]["summary"]
    assert page == "docs/operations.md"
    assert f"## {heading.replace('-', ' ')}" in _MANUAL.lower()


def test_prometheus_scrapes_every_service_where_it_listens() -> None:
    compose = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())["services"]
    prometheus = yaml.safe_load((_DEPLOY / "prometheus" / "prometheus.yaml").read_text())

    scraped = {
        name: found["port"]
        for job in prometheus["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for name in found["names"]
    }
    assert scraped == {name: compose[name]["environment"][f"{name.upper()}_HTTP_PORT"] for name in SERVICES}


def test_prometheus_loads_files_that_are_there() -> None:
    prometheus = yaml.safe_load((_DEPLOY / "prometheus" / "prometheus.yaml").read_text())

    assert [name for name in prometheus["rule_files"] if not (_DEPLOY / "prometheus" / name).exists()] == []


def test_the_dashboard_uses_the_data_source_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((_DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]

    used = {panel["datasource"]["uid"] for panel in _panels()}

    assert used == {source["uid"]}


def test_panels_have_their_own_place() -> None:
    panels = _dashboard()["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)


def test_the_dashboard_is_where_grafana_looks_for_it() -> None:
    grafana = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())["services"]["grafana"]
    provider = yaml.safe_load((_DEPLOY / "grafana/provisioning/dashboards/orders-backup.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]

    assert f"./grafana/dashboards:{folder}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/orders-backup.json"
