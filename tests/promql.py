"""What is wrong with a PromQL expression, measured by the list of MinMo's metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from minmo.rpc.metrics import FOREIGN, METRICS

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
TARGET_LABELS = frozenset({"namespace", "job", "instance"})
"""What Prometheus adds to each series."""
_PARTS = ("_bucket", "_count", "_sum")
_OVER_TIME = {"rate", "increase"}
_WORDS = re.compile(r"[^|()\\]+")


def rules() -> list[dict[str, Any]]:
    """All rules, alerts too."""
    return [
        rule
        for path in sorted(RULES.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def problems(expression: str) -> list[str]:
    """What does not fit the list of metrics: names, labels, their values, and kinds.

    Raises:
        ValueError: it is not PromQL.
    """
    return list(_problems(promql.parse(expression), over_time=False))


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics in an expression, histograms without their parts."""
    found: set[str] = set()

    def visit(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            found.update(_base(name) for name in _names(node))

    promql.walk(promql.parse(expression), visit)
    return found


def labels_of(name: str) -> frozenset[str]:
    """Labels that a series may have. Raises KeyError if there is no such metric."""
    if name == "up" or name in FOREIGN:
        return TARGET_LABELS
    if name in _recorded():
        return _recorded()[name]
    metric = METRICS[_base(name)]
    within = {"le"} if name.endswith("_bucket") else set()
    return TARGET_LABELS | set(metric.labels) | within


def _problems(node: object, *, over_time: bool) -> Iterator[str]:
    match node:
        case promql.VectorSelector():
            for name in _names(node):
                yield from _wrong_in_selector(name, node, over_time=over_time)
        case promql.MatrixSelector():
            yield from _problems(node.vector_selector, over_time=over_time)
        case promql.Call():
            inside = over_time or node.func.name in _OVER_TIME
            for argument in node.args:
                yield from _problems(argument, over_time=inside)
        case promql.AggregateExpr():
            yield from _problems(node.expr, over_time=over_time)
            there = _labels_within(node.expr)
            grouped = set(node.modifier.labels) if node.modifier else set()
            if unknown := grouped - there:
                yield f"by {sorted(unknown)}, but there are only {sorted(there)}"
        case promql.BinaryExpr():
            yield from _problems(node.lhs, over_time=over_time)
            yield from _problems(node.rhs, over_time=over_time)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            yield from _problems(node.expr, over_time=over_time)


def _wrong_in_selector(name: str, node: promql.VectorSelector, *, over_time: bool) -> Iterator[str]:
    try:
        labels = labels_of(name)
    except KeyError:
        yield f"there is no metric {name}"
        return
    metric = METRICS.get(_base(name))
    if metric is not None:
        counts = metric.kind != "gauge"
        if counts and not over_time:
            yield f"{name} counts up: only its rate or increase says something"
        if over_time and not counts:
            yield f"{name} is a gauge: it has no rate"
        if metric.kind == "histogram" and not name.endswith(_PARTS):
            yield f"{name} is a histogram: give one of its parts"
    for matcher in node.matchers.matchers:
        if matcher.name == "__name__":
            continue
        if matcher.name not in labels:
            yield f"{name} has no label {matcher.name}"
        elif metric is not None and isinstance(known := metric.labels.get(matcher.name), tuple):
            for word in _WORDS.findall(matcher.value):
                if word not in known:
                    yield f"{matcher.name} of {name} is never {word!r}"


def _labels_within(node: object) -> set[str]:
    """Labels that the series of an expression may have, at most."""
    match node:
        case promql.VectorSelector():
            found: set[str] = set()
            for name in _names(node):
                found |= _labels_or_none(name)
            return found
        case promql.MatrixSelector():
            return _labels_within(node.vector_selector)
        case promql.Call():
            return set().union(*(_labels_within(argument) for argument in node.args))
        case promql.AggregateExpr():
            return set(node.modifier.labels) if node.modifier else set()
        case promql.BinaryExpr():
            return _labels_within(node.lhs) | _labels_within(node.rhs)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return _labels_within(node.expr)
    return set()


def _labels_or_none(name: str) -> frozenset[str]:
    try:
        return labels_of(name)
    except KeyError:
        return frozenset()


def _names(node: promql.VectorSelector) -> list[str]:
    if node.name:
        return [node.name]
    return [
        word
        for matcher in node.matchers.matchers
        if matcher.name == "__name__"
        for word in _WORDS.findall(matcher.value)
    ]


def _base(name: str) -> str:
    for part in _PARTS:
        base = name.removesuffix(part)
        if base != name and base in METRICS and METRICS[base].kind == "histogram":
            return base
    return name


@cache
def _recorded() -> dict[str, frozenset[str]]:
    """Labels of what rules record, by its name, which begins with them."""
    found: dict[str, frozenset[str]] = {}
    for rule in rules():
        if "record" in rule:
            by = rule["record"].partition(":")[0].split("_")
            own = found.get(rule["record"], frozenset())
            found[rule["record"]] = own | set(by) | set(rule.get("labels", {}))
    return found
