"""The alerts: each fires when it should, is silent when it should, and leads to a page that helps.

What they are tried with stands in `tests/unit/alerts`, a file for each, which promtool runs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests import promql
from tests.prometheus import promtool
from tools import prometheus_rule

ROOT = Path(__file__).parent.parent.parent
CASES = Path(__file__).parent / "alerts"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yaml"
ALERTS = [rule for rule in promql.rules() if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
SECTIONS = ["What people feel", "Is it so?", "Why, most likely first", "What to do", "Is it over?"]
RUNBOOKS = sorted((ROOT / "docs" / "runbooks").glob("MinMo*.md"))


def cases(alert: str) -> list[dict[str, Any]]:
    """What promtool tries an alert with."""
    found: list[dict[str, Any]] = yaml.safe_load((CASES / f"{alert}.yaml").read_text())["tests"]
    return found


def test_prometheus_takes_the_rules_and_the_configuration() -> None:
    checked = promtool("check", "rules", "--lint=all", *sorted(promql.RULES.glob("*.yaml")))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    checked = promtool("check", "config", CONFIG)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should_and_is_silent_when_it_should() -> None:
    ran = promtool("test", "rules", *sorted(CASES.glob("*.yaml")))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {path.stem for path in CASES.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_is_tried_both_ways(alert: str) -> None:
    tried = [check for case in cases(alert) for check in case["alert_rule_test"]]
    assert all(check["alertname"] == alert for check in tried)
    wanted = [expected for check in tried for expected in check.get("exp_alerts", [])]
    fires = {str(expected["exp_labels"].get("window", "")) + expected["exp_labels"]["severity"]
             for expected in wanted}  # fmt: skip
    rules = {str(rule["labels"].get("window", "")) + rule["labels"]["severity"]
             for rule in ALERTS if rule["alert"] == alert}  # fmt: skip
    assert fires == rules
    quiet = [case for case in cases(alert)
             if not any(check.get("exp_alerts") for check in case["alert_rule_test"])]  # fmt: skip
    assert quiet, "no case says when it is silent"


@pytest.mark.parametrize("alert", NAMES)
def test_every_alert_is_tried_with_series_that_there_are(alert: str) -> None:
    for case in cases(alert):
        for series in case["input_series"]:
            selector = promql_parser.parse(f"rate({series['series']}[5m])")
            if promql.metrics_in(series["series"]) - {"up"}:
                problems = promql.problems(str(selector.prettify()))
                assert [found for found in problems if "has no rate" not in found] == []


@pytest.mark.parametrize(
    "rule", promql.rules(), ids=lambda rule: rule.get("alert", rule.get("record"))
)
def test_every_rule_asks_for_what_there_is(rule: dict[str, Any]) -> None:
    assert promql.problems(rule["expr"]) == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_bad_it_is_and_what_helps(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_there_is_a_runbook_for_each_alert_and_no_other() -> None:
    assert [path.stem for path in RUNBOOKS] == NAMES
    listed = (ROOT / "docs" / "runbooks" / "README.md").read_text()
    for rule in ALERTS:
        (row,) = re.findall(rf"^\| \[{rule['alert']}\]\(.*$", listed, re.MULTILINE)
        assert rule["labels"]["severity"] in row


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: str(page.stem))
def test_a_runbook_answers_the_five_questions(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    queries = re.findall(r"```promql\n(.+?)```", text, re.DOTALL)
    assert queries
    for query in queries:
        assert promql.problems(query) == [], query
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).is_file(), link


def test_the_operator_gets_the_same_rules(tmp_path: Path) -> None:
    committed = prometheus_rule.TARGET.read_text()
    assert committed == prometheus_rule.made(), "run: .venv/bin/python tools/prometheus_rule.py"
    groups = yaml.safe_load(committed)["spec"]["groups"]
    assert [rule for group in groups for rule in group["rules"]] == promql.rules()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    assert promtool("check", "rules", tmp_path / "rules.yaml").returncode == 0


def test_links_can_lead_to_a_copy_of_the_runbooks() -> None:
    made = yaml.safe_load(prometheus_rule.made("https://runbooks.example/minmo/"))
    links = [rule["annotations"]["runbook_url"] for group in made["spec"]["groups"]
             for rule in group["rules"] if "alert" in rule]  # fmt: skip
    assert f"https://runbooks.example/minmo/{NAMES[0]}.md" in links
    assert all(link.startswith("https://runbooks.example/minmo/MinMo") for link in links)
