"""The dashboard and the alerts name metrics, labels and values that the service has."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from support_rag.service.app import create_app
from support_rag.state.observe import REGISTRY, render_metrics
from support_rag.state.settings import ServiceSettings
from support_rag.types import Outcome

MONITORING = Path(__file__).parent.parent / "docs" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [rule["expr"] for rule in RULES]
EXPRESSIONS += [target["expr"] for panel in PANELS for target in panel["targets"]]
PROMETHEUS_OWN = {"up": {"job"}}


def shown() -> dict[str, set[str]]:
    "Return each series that `GET /metrics` can show, with its labels."
    labels = {
        name: set(collector._labelnames)  # type: ignore[attr-defined]
        for name, collector in REGISTRY._names_to_collectors.items()
    }
    types = re.findall(r"^# TYPE (\w+) (\w+)$", render_metrics({"ingest": 0}).decode(), re.M)
    series = {}
    for name, kind in types:
        of = labels.get(name, {"kind"})
        if kind == "histogram":
            series |= {f"{name}_bucket": of | {"le"}, f"{name}_sum": of, f"{name}_count": of}
        else:
            series[name] = of
    return {name: of | {"job"} for name, of in series.items()} | PROMETHEUS_OWN


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    "Return each series that an expression selects, with the labels it asks for."
    return [
        (name, dict(re.findall(r'(\w+)=~?"([^"]*)"', inside)))
        for name, inside in re.findall(r"\b([a-z_]+)\{([^}]*(?:\{[^}]*\}[^}]*)*)\}", expression)
    ]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_series_and_label_exists(expression: str) -> None:
    series = shown()
    found = selectors(expression)
    assert found
    for name, labels in found:
        assert name in series, f"the service shows no {name}"
        assert set(labels) <= series[name], f"{name} has the labels {sorted(series[name])}"
    grouped = re.findall(r"\bby \(([^)]*)\)", expression)
    known = set().union(*(series[name] for name, _ in found))
    for names in grouped:
        assert {name.strip() for name in names.split(",")} <= known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_value_can_occur(expression: str) -> None:
    routes = set(create_app(ServiceSettings()).openapi()["paths"])
    for _, labels in selectors(expression):
        for decision in filter(None, labels.get("decision", "").split("|")):
            assert decision in {outcome.value for outcome in Outcome}
        assert labels.get("route", "/health") in routes
        assert labels.get("outcome", "failed") in {"failed", "ready", "gone"}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_bracket_is_closed(expression: str) -> None:
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


def test_a_wrong_name_is_noticed() -> None:
    with pytest.raises(AssertionError, match="shows no decision_total"):
        test_every_series_and_label_exists('rate(decision_total{job="support_rag"}[5m])')
    with pytest.raises(AssertionError, match="has the labels"):
        test_every_series_and_label_exists('rate(decisions_total{verdict="answer"}[5m])')


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    for panel in PANELS:
        assert panel["description"].endswith(".") and panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for one, other in combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


def test_alerts_say_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")
