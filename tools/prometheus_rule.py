"""Write the rules as the Prometheus Operator takes them: `python tools/prometheus_rule.py`.

Makes `deploy/prometheus/prometheus-rule.yaml` of `deploy/prometheus/rules`. `--runbooks URL` says
where your copy of docs/runbooks is, so that an alert's link opens in a browser.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "prometheus"
TARGET = DEPLOY / "prometheus-rule.yaml"
RUNBOOKS = "docs/runbooks"
_HEAD = "# Made of rules/*.yaml by tools/prometheus_rule.py. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


def made(runbooks: str = RUNBOOKS) -> str:
    """The resource."""
    groups = [
        group
        for path in sorted((DEPLOY / "rules").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    for group in groups:
        for rule in group["rules"]:
            _link(rule, runbooks.rstrip("/"))
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "minmo",
            "labels": {"app.kubernetes.io/name": "minmo", "app.kubernetes.io/component": "rules"},
        },
        "spec": {"groups": groups},
    }
    return _HEAD + yaml.dump(resource, Dumper=_Dumper, sort_keys=False, width=1000)


def _link(rule: dict[str, Any], runbooks: str) -> None:
    if "alert" in rule:
        page = rule["annotations"]["runbook_url"].removeprefix(RUNBOOKS)
        rule["annotations"]["runbook_url"] = f"{runbooks}{page}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=TARGET, help="the file")
    parser.add_argument("--runbooks", default=RUNBOOKS, help="URL of the runbooks' folder")
    options = parser.parse_args()
    options.out.write_text(made(options.runbooks))
    print(options.out)


if __name__ == "__main__":
    main()
