"""Panels, and dashboards made of them. Whoever makes a panel says what is good and what is bad."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from tools.dashboards.queries import rate

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "minmo"
WIDTH = 24
"""Columns of Grafana's grid."""
_HEIGHT = 7
_GREEN, _YELLOW, _RED = "green", "yellow", "red"

_Builder: TypeAlias = bargauge.Panel | heatmap.Panel | stat.Panel | table.Panel | timeseries.Panel


@dataclass(frozen=True)
class Series:
    """One query of a panel.

    Args:
        expr: PromQL, with the dashboard's variables.
        legend: name of its series, with labels as ``{{job}}``.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Limits:
    """From where on a value is worth a look, and from where on it is bad.

    Args:
        warn: yellow from here on.
        bad: red from here on.
        low_is_bad: the value is bad below instead of above.
    """

    warn: float
    bad: float
    low_is_bad: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What every panel has.

    Args:
        title: what is shown.
        good: what one hopes to see; ends with a full stop.
        bad: what one does not; ends with a full stop.
        unit: Grafana's name of the unit, as in ``s``.
        series: what is queried.
        about: what has to be known to read it.
        runbook: alert whose runbook helps when it looks bad, or several.
        limits: from where on it does.
        width: columns of 24.
        height: rows of Grafana's grid.
    """

    title: str
    good: str
    bad: str
    unit: str
    series: Sequence[Series] = ()
    about: str = ""
    runbook: str | Sequence[str] = ()
    limits: Limits | None = None
    width: int = 8
    height: int = _HEIGHT

    def build(self) -> _Builder:
        """The panel as Grafana's library makes it."""
        raise NotImplementedError

    def dress(self, panel: _Builder) -> None:
        """Gives it all that panels of every kind have."""
        about = f"{self.about}\n\n" if self.about else ""
        panel.title(self.title)
        panel.description(f"{about}**Good:** {self.good}\n\n**Bad:** {self.bad}")
        panel.datasource(SOURCE).unit(self.unit).span(self.width).height(self.height)
        alerts = [self.runbook] if isinstance(self.runbook, str) else self.runbook
        if alerts:
            panel.links([_runbook(alert) for alert in alerts])
        if self.limits is not None:
            panel.thresholds(_thresholds(self.limits))

    def queries(self) -> list[prometheus.Dataquery]:
        """Its queries, lettered."""
        return [
            prometheus.Dataquery()
            .expr(series.expr)
            .legend_format(series.legend or "__auto")
            .ref_id(chr(ord("A") + number))
            .datasource(SOURCE)
            for number, series in enumerate(self.series)
        ]


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """Values over time.

    Args:
        stacked: the series add up to something.
        top: end of the axis.
    """

    stacked: bool = False
    top: float | None = None

    def build(self) -> timeseries.Panel:
        """The panel as Grafana's library makes it."""
        panel = timeseries.Panel()
        self.dress(panel)
        for query in self.queries():
            panel.with_target(query.range())
        panel.min(0).line_width(1.5).fill_opacity(30 if self.stacked else 5)
        panel.show_points(common_models.VisibilityMode.AUTO).span_nulls(60_000)
        if self.top is not None:
            panel.max(self.top)
        if self.stacked:
            panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
        if self.limits is not None:
            panel.thresholds_style(
                common.GraphThresholdsStyleConfig().mode(
                    common_models.GraphThresholdsStyleMode.DASHED
                )
            )
        panel.legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        panel.tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        return panel


@dataclass(frozen=True, kw_only=True)
class Number(Panel):
    """The value now, in large."""

    width: int = 4
    height: int = 4

    def build(self) -> stat.Panel:
        """The panel as Grafana's library makes it."""
        panel = stat.Panel()
        self.dress(panel)
        for query in self.queries():
            panel.with_target(query.range())
        panel.reduce_options(_last()).graph_mode(common_models.BigValueGraphMode.AREA)
        panel.color_mode(common_models.BigValueColorMode.VALUE)
        if self.limits is None:
            panel.color_scheme(
                dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color("text")
            )
        return panel


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """Values now, one beside the other."""

    def build(self) -> bargauge.Panel:
        """The panel as Grafana's library makes it."""
        panel = bargauge.Panel()
        self.dress(panel)
        for query in self.queries():
            panel.with_target(query.instant())
        panel.min(0).reduce_options(_last())
        panel.orientation(common_models.VizOrientation.HORIZONTAL)
        panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
        if self.limits is None:
            panel.color_scheme(
                dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color("blue")
            )
        return panel


@dataclass(frozen=True, kw_only=True)
class Heat(Panel):
    """How the values of a histogram are spread over time.

    Args:
        histogram: the metric, without ``_bucket``.
        where: further matchers.
    """

    histogram: str
    where: str = ""

    def build(self) -> heatmap.Panel:
        """The panel as Grafana's library makes it."""
        panel = heatmap.Panel()
        self.dress(panel)
        panel.with_target(
            prometheus.Dataquery()
            .expr(rate(f"{self.histogram}_bucket", "le", where=self.where))
            .legend_format("{{le}}")
            .format(PromQueryFormat.HEATMAP)
            .ref_id("A")
            .datasource(SOURCE)
            .range()
        )
        panel.y_axis(heatmap.YAxisConfig().unit(self.unit))
        panel.color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
        )
        panel.calculate(False).show_legend().cell_gap(1)
        return panel


@dataclass(frozen=True, kw_only=True)
class Rows(Panel):
    """Series now, a row each, with their labels as columns.

    Args:
        hide: labels that are no column.
    """

    hide: Sequence[str] = ()

    def build(self) -> table.Panel:
        """The panel as Grafana's library makes it."""
        panel = table.Panel()
        self.dress(panel)
        for query in self.queries():
            panel.with_target(query.instant().format(PromQueryFormat.TABLE))
        panel.show_header(True).cell_height(common_models.TableCellHeight.SM)
        panel.with_transformation(
            models.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": dict.fromkeys(("Time", *self.hide), True)},
            )
        )
        return panel


@dataclass(frozen=True)
class Section:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A dashboard.

    Args:
        name: of its file; its id is ``minmo-NAME``.
        title: what it is called.
        description: the question that it answers.
        sections: its panels.
        members: selector of series that only its services have: their namespaces, jobs and
            instances can be chosen.
        all_jobs: it shows all services, and whatever else they use.
        further: variables besides those.
        links: to other places than the other dashboards.
    """

    name: str
    title: str
    description: str
    sections: Sequence[Section]
    members: str
    all_jobs: bool = False
    further: Sequence[dashboard.TextBoxVariable | dashboard.DatasourceVariable] = ()
    links: Sequence[dashboard.DashboardLink] = field(default_factory=tuple)

    def to_json(self, runbooks: str) -> str:
        """Its file. `runbooks` is where the pages of docs/runbooks are, as a URL."""
        made = (
            dashboard.Dashboard(self.title)
            .uid(f"minmo-{self.name}")
            .description(self.description)
            .tags([TAG])
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time("now-1h", "now")
            .refresh("10s")
            .timezone("browser")
            .editable()
            .link(_siblings())
        )
        for link in self.links:
            made.link(link)
        for variable in (*_variables(self.members, all_jobs=self.all_jobs), *self.further):
            made.with_variable(variable)
        made.with_variable(
            dashboard.ConstantVariable("runbooks").label("Where the runbooks are").value(runbooks)
        )
        for section in self.sections:
            made.with_row(dashboard.Row(section.title))
            for panel in section.panels:
                made.with_panel(panel.build())
        return _numbered(made)


def _numbered(made: dashboard.Dashboard) -> str:
    found: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(found["panels"], start=1):
        panel["id"] = number
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def _runbook(alert: str) -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink(f"Runbook: {alert}")
        .type(models.DashboardLinkType.LINK)
        .url(f"${{runbooks}}/{alert}.md")
        .target_blank(True)
    )


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _thresholds(limits: Limits) -> dashboard.ThresholdsConfig:
    if limits.low_is_bad:
        steps = [(None, _RED), (limits.bad, _YELLOW), (limits.warn, _GREEN)]
    else:
        steps = [(None, _GREEN), (limits.warn, _YELLOW), (limits.bad, _RED)]
    return (
        dashboard.ThresholdsConfig()
        .mode(models.ThresholdsMode.ABSOLUTE)
        .steps([models.Threshold(value=value, color=color) for value, color in steps])
    )


def _siblings() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("MinMo")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .keep_time(True)
        .include_vars(True)
    )


def _variables(
    members: str, *, all_jobs: bool
) -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    metric, _, matchers = members.partition("{")
    matchers = matchers.removesuffix("}")
    found: list[dashboard.DatasourceVariable | dashboard.QueryVariable] = [
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    ]
    chosen = [matchers] if matchers else []
    for name in ("namespace", "job", "instance"):
        query = f"label_values({metric}{{{', '.join(chosen)}}}, {name})"
        variable = (
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query({"query": query, "refId": name})
            .datasource(SOURCE)
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .current(models.VariableOption(text=["All"], value=["$__all"], selected=True))
        )
        # Everything includes what has no such label. A job's name says which service it is.
        if name != "job" or all_jobs:
            variable.all_value(".*")
        found.append(variable)
        chosen.append(f'{name}=~"${name}"')
    return found
