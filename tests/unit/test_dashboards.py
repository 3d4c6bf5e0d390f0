"""The dashboards that are committed: what they show exists, is explained, and helps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from minmo.rpc.metrics import METRICS
from tests import promql
from tools.dashboards import live, units
from tools.dashboards.__main__ import FOLDER, write

ROOT = Path(__file__).parent.parent.parent
RUNBOOKS = ROOT / "docs" / "runbooks"
FILES = sorted(FOLDER.glob("*.json"))
COLUMNS = 24
DASHBOARDS = [pytest.param(live.load(path), id=path.stem) for path in FILES]
CHOSEN = {"namespace": ".*", "job": ".*", "instance": ".*"}
NOT_SHOWN = {
    "minmo_rpc_duration_seconds": "most calls are streams, which last as long as a conversation",
    "minmo_rpc_in_flight": "minmo_streams, which has a limit, says it better",
    "minmo_playback_stall_seconds_total": "how often is shown; docs/runbooks asks how long",
}


def expressions(dashboard: dict[str, Any]) -> dict[str, str]:
    """What its panels query, with all chosen, by panel and query."""
    return {
        f"{panel['title']} {target['refId']}": live.fill(target["expr"], CHOSEN)
        for panel in live.panels(dashboard)
        for target in panel["targets"]
    }


def test_what_is_committed_is_what_the_code_makes(tmp_path: Path) -> None:
    made = write(tmp_path)
    assert {path.name for path in made} == {path.name for path in FILES}
    for path in made:
        committed = (FOLDER / path.name).read_text()
        assert path.read_text() == committed, "run: .venv/bin/python -m tools.dashboards"


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_query_asks_for_what_there_is(dashboard: dict[str, Any]) -> None:
    wrong = {where: promql.problems(expr) for where, expr in expressions(dashboard).items()}
    assert not {where: found for where, found in wrong.items() if found}


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_the_variables_choose_by_series_that_there_are(dashboard: dict[str, Any]) -> None:
    names = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "namespace", "job", "instance", "runbooks"} <= names
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = live.fill(variable["query"]["query"], CHOSEN)
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert found is not None
            assert found[2] in promql.TARGET_LABELS
            assert all(promql.labels_of(name) for name in promql.metrics_in(found[1]))


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_query_obeys_the_variables(dashboard: dict[str, Any]) -> None:
    for panel in live.panels(dashboard):
        for target in panel["targets"]:
            selectors = re.findall(r"\w\{[^}]*\}", target["expr"])
            assert selectors
            assert all('namespace=~"$namespace"' in found for found in selectors)
            assert "$__interval" not in target["expr"]


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_legend_names_labels_that_the_series_have(dashboard: dict[str, Any]) -> None:
    for panel in live.panels(dashboard):
        for target in panel["targets"]:
            expression = live.fill(target["expr"], CHOSEN)
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            there = set().union(*map(promql.labels_of, promql.metrics_in(expression))) | {"le"}
            grouped = set(", ".join(re.findall(r"by \(([^)]*)\)", expression)).split(", "))
            assert named <= there & grouped, panel["title"]


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_every_panel_says_its_unit_and_what_is_good_and_bad(dashboard: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in live.panels(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in live.panels(dashboard):
        assert units.text(1.0, panel["fieldConfig"]["defaults"]["unit"])
        good, bad = re.findall(r"\*\*(?:Good|Bad):\*\* (.+?\.)(?=\n|$)", panel["description"])
        assert good != bad


@pytest.mark.parametrize("dashboard", DASHBOARDS)
def test_panels_stand_beside_each_other(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= COLUMNS
        assert not cells & taken, panel["title"]
        taken |= cells
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_links_lead_to_runbooks_and_every_runbook_is_linked() -> None:
    linked = {
        link["url"]
        for path in FILES
        for panel in live.panels(live.load(path))
        for link in panel.get("links", [])
    }
    pages = {f"${{runbooks}}/{path.name}" for path in RUNBOOKS.glob("MinMo*.md")}
    assert linked <= pages
    alerts = {rule["alert"] for rule in promql.rules() if "alert" in rule}
    assert {f"${{runbooks}}/{alert}.md" for alert in alerts} - linked == set()


def test_every_metric_is_shown_or_it_is_said_why_not() -> None:
    shown: set[str] = set()
    for path in FILES:
        for expression in expressions(live.load(path)).values():
            shown |= promql.metrics_in(expression)
    recorded = {rule["record"]: rule["expr"] for rule in promql.rules() if "record" in rule}
    for name in shown & recorded.keys():
        shown |= promql.metrics_in(recorded[name])
    assert METRICS.keys() - shown == NOT_SHOWN.keys()


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("sum(rate(minmo_turnz_total[5m]))", "no metric minmo_turnz_total"),
        ('minmo_not_ready{cause="redis"}', "no label cause"),
        ('minmo_not_ready{reason="rediss"}', "never 'rediss'"),
        ('minmo_not_ready{reason=~"redis|llms"}', "never 'llms'"),
        ("sum(minmo_turns_total)", "only its rate"),
        ("rate(minmo_sessions_open[5m])", "is a gauge"),
        ("rate(minmo_turn_first_audio_seconds[5m])", "one of its parts"),
        ("sum by (hop) (minmo_sessions_open)", "by ['hop']"),
    ],
)
def test_a_query_for_what_there_is_not_is_found(expression: str, why: str) -> None:
    assert why in " ".join(promql.problems(expression))


def test_every_dashboard_becomes_a_config_map_that_can_be_applied() -> None:
    made = yaml.safe_load((FOLDER.parent / "kustomization.yaml").read_text())
    files = [file for one in made["configMapGenerator"] for file in one["files"]]
    assert files == [f"dashboards/{path.name}" for path in FILES]
    # `kubectl apply` keeps a copy in an annotation, which may have so many bytes.
    assert all(path.stat().st_size < 200_000 for path in FILES)
