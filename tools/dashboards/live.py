"""Runs the queries of a dashboard against a Prometheus, as Grafana would."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

_SECONDS = 30.0
_LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), *(?P<label>\w+)\)")
_LEGEND = re.compile(r"{{ *(\w+) *}}")
_HIDDEN = ("__name__",)


@dataclass(frozen=True)
class Span:
    """The time that a dashboard shows.

    Args:
        start: in seconds since 1970; the end likewise.
        step: seconds between two values.
        window: of ``$__rate_interval``, in seconds.
    """

    start: float
    end: float
    step: float
    window: float

    @classmethod
    def last(cls, seconds: float, scrape_seconds: float, points: int = 240) -> Self:
        """The last so many seconds.

        Args:
            seconds: how many.
            scrape_seconds: time between two scrapes.
            points: values of a line, at most.
        """
        end = time.time()
        step = max(scrape_seconds, math.ceil(seconds / points))
        # As Grafana documents it.
        window = max(step + scrape_seconds, 4 * scrape_seconds)
        return cls(end - seconds, end, step, window)


@dataclass(frozen=True)
class Line:
    """A series of a panel.

    Attributes:
        name: as its legend says.
        labels: those it has.
        times: in seconds since 1970.
        values: at these times.
    """

    name: str
    labels: Mapping[str, str]
    times: list[float]
    values: list[float]


class Source:
    """A Prometheus.

    Args:
        url: of its HTTP API, as in ``http://127.0.0.1:9090``.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **parameters: str | float) -> Any:
        """What its API answers. Raises ValueError with the query if it refuses."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        found = json.loads(answer.text)
        if found["status"] != "success":
            raise ValueError(f"{parameters}: {found['error']}")
        return found["data"]


def load(path: Path) -> dict[str, Any]:
    """A dashboard's file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, without the headings."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def choose_all(source: Source, dashboard: Mapping[str, Any]) -> dict[str, str]:
    """The values of its variables when everything is chosen, as they stand in queries."""
    chosen: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        if variable["type"] != "query":
            query = variable.get("query")
            chosen[name] = query if isinstance(query, str) else ""
        elif "allValue" in variable:
            chosen[name] = variable["allValue"]
        else:
            found = _LABEL_VALUES.fullmatch(fill(variable["query"]["query"], chosen))
            assert found is not None, variable
            path = f"label/{found['label']}/values"
            values = source.get(path, **{"match[]": found["series"]})
            chosen[name] = "|".join(re.escape(value).replace("\\", "\\\\") for value in values)
    return chosen


def fill(text: str, chosen: Mapping[str, str], window: float = 60.0, shown: float = 3600.0) -> str:
    """Text with its variables replaced by their values.

    Args:
        text: a query, or a query for values.
        chosen: the dashboard's variables.
        window: seconds of ``$__rate_interval``.
        shown: seconds of ``$__range``.
    """
    text = text.replace("$__rate_interval", f"{window:g}s").replace("$__range", f"{shown:.0f}s")
    for name, value in chosen.items():
        text = text.replace(f"${{{name}}}", value)
        text = re.sub(rf"\${name}\b", value.replace("\\", "\\\\"), text)
    return text


def lines(
    source: Source, panel: Mapping[str, Any], chosen: Mapping[str, str], span: Span
) -> list[list[Line]]:
    """The series of each query of a panel; a query of what is now gives one value for each."""
    return [_lines(source, target, chosen, span) for target in panel["targets"]]


def _lines(
    source: Source, target: Mapping[str, Any], chosen: Mapping[str, str], span: Span
) -> list[Line]:
    query = fill(target["expr"], chosen, span.window, span.end - span.start)
    if target.get("instant"):
        result = source.get("query", query=query, time=span.end)["result"]
        found = [(one["metric"], [one["value"]]) for one in result]
    else:
        result = source.get(
            "query_range", query=query, start=span.start, end=span.end, step=span.step
        )["result"]
        found = [(one["metric"], one["values"]) for one in result]
    return [
        Line(
            _name(target.get("legendFormat", ""), labels),
            labels,
            [float(at) for at, _ in values],
            [float(value) for _, value in values],
        )
        for labels, values in found
    ]


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend and legend != "__auto":
        return _LEGEND.sub(lambda found: labels.get(found[1], ""), legend)
    return ", ".join(f"{key}={labels[key]}" for key in sorted(labels) if key not in _HIDDEN)
