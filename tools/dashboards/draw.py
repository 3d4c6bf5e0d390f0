"""Draw a dashboard's panels from a Prometheus, where there is no Grafana.

    python -m tools.dashboards.draw overview --prometheus http://127.0.0.1:9090 --out docs

It takes layout, queries, units, limits and legends from the committed JSON, so what it draws is
what Grafana would ask for. Writes ``dashboard-NAME.png`` into the folder.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from tools.dashboards import live, units
from tools.dashboards.live import Line, Source, Span

FOLDER = Path(__file__).resolve().parent.parent.parent / "deploy" / "grafana" / "dashboards"
_COLUMN_INCHES, _ROW_INCHES, _DPI = 0.58, 0.36, 82
_INK, _QUIET, _FRAME = "#24292f", "#6e7781", "#d8dee4"
_COLORS = {"green": "#1a7f37", "yellow": "#bf8700", "red": "#cf222e", "blue": "#0969da"}
_LINES = (
    "#0969da",
    "#1a7f37",
    "#bf8700",
    "#cf222e",
    "#8250df",
    "#1b7c83",
    "#bc4c00",
    "#bf3989",
    "#57606a",
    "#4ac26b",
)
_MOST_ROWS = 8
# What fits under a panel: characters of names in one column of the grid, and lines.
_NAME_CHARACTERS, _NAME_ROWS = 8, 2


def picture(dashboard: dict[str, Any], source: Source, span: Span) -> Figure:
    """All panels of a dashboard, with everything chosen in its variables."""
    chosen = live.choose_all(source, dashboard)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    head = 1
    size = (24 * _COLUMN_INCHES, (rows + head) * _ROW_INCHES)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    figure.text(
        0.012, 1 - 0.85 / (rows + head), dashboard["title"], size=15, weight="bold", color=_INK
    )

    def place(grid: dict[str, int], *, left: float, right: float, top: float, bottom: float) -> Any:
        """The part of a panel within margins, in its columns and rows, as the figure counts."""
        width, height = 24, rows + head
        return (
            (grid["x"] + left) / width,
            1 - (head + grid["y"] + grid["h"] - bottom) / height,
            (grid["w"] - left - right) / width,
            (grid["h"] - top - bottom) / height,
        )

    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        if panel["type"] == "row":
            x, y, _, _ = place(grid, left=0.3, right=0, top=0, bottom=0.25)
            figure.text(x, y, panel["title"], size=11, weight="bold", color=_QUIET)
            continue
        frame = figure.add_axes(place(grid, left=0.12, right=0.12, top=0.12, bottom=0.12))
        frame.set_xticks([])
        frame.set_yticks([])
        for spine in frame.spines.values():
            spine.set_color(_FRAME)
        x, y, _, _ = place(grid, left=0.35, right=0, top=0, bottom=grid["h"] - 0.95)
        figure.text(x, y, panel["title"], size=9, weight="bold", color=_INK)
        found = [line for query in live.lines(source, panel, chosen, span) for line in query]
        kind = panel["type"]
        axes = figure.add_axes(place(grid, **_MARGINS[kind]))
        if found:
            _DRAW[kind](axes, panel, found, span)
        else:
            axes.axis("off")
            axes.text(0.5, 0.5, "no data", ha="center", va="center", size=9, color=_QUIET)
    return figure


def _draw_lines(axes: Axes, panel: dict[str, Any], found: Sequence[Line], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    colors = [_LINES[number % len(_LINES)] for number in range(len(found))]
    if stacked:
        times = sorted({at for line in found for at in line.times})
        tables = [dict(zip(line.times, line.values, strict=True)) for line in found]
        heights = [[table.get(at, 0.0) for at in times] for table in tables]
        axes.stackplot(_dates(times), heights, colors=colors, alpha=0.6, linewidth=0)
    else:
        for line, color in zip(found, colors, strict=True):
            axes.plot(_dates(line.times), line.values, color=color, linewidth=1.4)
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    highest = axes.get_ylim()[1]
    for step in defaults.get("thresholds", {}).get("steps", []):
        value = step.get("value")
        if value is not None and value <= highest:
            axes.axhline(value, color=_COLORS[step["color"]], linestyle="--", linewidth=0.9)
    _over_time(axes, span)
    _values(axes, defaults["unit"])
    named = [(line.name, color) for line, color in zip(found, colors, strict=True) if line.name]
    longest = max((len(name) for name, _ in named), default=0)
    columns = max(1, min(4, panel["gridPos"]["w"] * _NAME_CHARACTERS // (longest + 5)))
    shown = named[: _NAME_ROWS * columns]
    if len(shown) < len(named):
        shown[-1] = (f"and {len(named) - len(shown) + 1} more", "white")
    axes.legend(
        [Line2D([], [], color=color, linewidth=3) for _, color in shown],
        [name for name, _ in shown],
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.16),
        ncols=columns,
        fontsize=7,
        frameon=False,
        labelcolor=_QUIET,
        handlelength=1,
        columnspacing=1.2,
    )


def _draw_number(axes: Axes, panel: dict[str, Any], found: Sequence[Line], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    line = found[0]
    axes.axis("off")
    color = _INK
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step.get("value") is None or line.values[-1] >= step["value"]:
            color = _COLORS[step["color"]]
    under = axes.inset_axes((0, 0, 1, 0.38))
    under.axis("off")
    under.fill_between(_dates(line.times), line.values, color=color, alpha=0.15, linewidth=0)
    under.set_ylim(bottom=0)
    under.set_xlim(*_dates([span.start, span.end]))
    value = units.text(line.values[-1], defaults["unit"])
    axes.text(0.5, 0.62, value, ha="center", va="center", size=17, weight="bold", color=color)


def _draw_bars(axes: Axes, panel: dict[str, Any], found: Sequence[Line], _: Span) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = [line.values[-1] for line in found]
    places = range(len(found))
    axes.barh(places, values, color=_COLORS["blue"], height=0.62)
    axes.set_yticks(list(places), [line.name for line in found], fontsize=7.5, color=_INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values, default=0) * 1.18 or 1)
    axes.set_xticks([])
    for place, value in zip(places, values, strict=True):
        axes.text(value, place, f" {units.text(value, unit)}", va="center", size=7.5, color=_INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(_FRAME)
    axes.tick_params(length=0)


def _draw_heat(axes: Axes, panel: dict[str, Any], found: Sequence[Line], span: Span) -> None:
    unit = panel["options"]["yAxis"]["unit"]
    buckets = sorted(found, key=lambda line: float(line.labels["le"]))
    times = sorted({at for line in buckets for at in line.times})
    tables = [dict(zip(line.times, line.values, strict=True)) for line in buckets]
    below, cells = [0.0] * len(times), []
    for table in tables:
        reached = [table.get(at, 0.0) for at in times]
        cells.append([max(0.0, a - b) for a, b in zip(reached, below, strict=True)])
        below = reached
    highest = max((value for row in cells for value in row), default=0.0)
    if highest > 0:
        axes.pcolormesh(
            _dates([*times, times[-1] + span.step]),
            range(len(buckets) + 1),
            cells,
            cmap="Blues",
            norm=LogNorm(highest / 50, highest, clip=True),
        )
    every = max(1, len(buckets) // 6)
    edges = list(range(0, len(buckets), every))
    names = [float(buckets[edge].labels["le"]) for edge in edges]
    axes.set_yticks(
        [edge + 1 for edge in edges],
        ["∞" if value == float("inf") else units.text(value, unit) for value in names],
    )
    _over_time(axes, span)


def _draw_rows(axes: Axes, panel: dict[str, Any], found: Sequence[Line], _: Span) -> None:
    axes.axis("off")
    organized = panel["transformations"][0]["options"]["excludeByName"]
    columns = sorted({key for line in found for key in line.labels} - set(organized) - {"__name__"})
    cells = [[line.labels.get(column, "") for column in columns] for line in found[:_MOST_ROWS]]
    drawn = axes.table(cells, colLabels=columns, loc="upper center", cellLoc="left", edges="open")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(7.5)


def _over_time(axes: Axes, span: Span) -> None:
    axes.set_xlim(*_dates([span.start, span.end]))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=5))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))  # type: ignore[no-untyped-call]
    axes.tick_params(labelsize=7, labelcolor=_QUIET, length=0)
    axes.grid(color=_FRAME, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _values(axes: Axes, unit: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.text(value, unit)))


def _dates(times: Sequence[float]) -> list[float]:
    return list(dates.date2num([datetime.fromtimestamp(at, UTC) for at in times]))  # type: ignore[no-untyped-call]


_GRAPH = {"left": 1.55, "right": 0.5, "top": 1.35, "bottom": 1.75}
_MARGINS = {
    "timeseries": _GRAPH,
    "heatmap": {**_GRAPH, "bottom": 1.0},
    "stat": {"left": 0.3, "right": 0.3, "top": 1.1, "bottom": 0.25},
    "bargauge": {"left": 3.2, "right": 0.4, "top": 1.3, "bottom": 0.4},
    "table": {"left": 0.3, "right": 0.3, "top": 1.2, "bottom": 0.3},
}
_DRAW = {
    "timeseries": _draw_lines,
    "heatmap": _draw_heat,
    "stat": _draw_number,
    "bargauge": _draw_bars,
    "table": _draw_rows,
}


def save(figure: Figure, path: Path) -> None:
    """Writes a picture of few colours, as docs take it."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png")
    raw.seek(0)
    Image.open(raw).convert("RGB").quantize(128).save(path, optimize=True)


def draw(names: Sequence[str], url: str, out: Path, span: Span) -> None:
    """Draws dashboards, by name, into a folder."""
    with Source(url) as source:
        for name in names:
            figure = picture(live.load(FOLDER / f"{name}.json"), source, span)
            save(figure, out / f"dashboard-{name}.png")


def main() -> None:
    """The command line."""
    there = sorted(path.stem for path in FOLDER.glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*there, []], help="dashboards; all if none")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its URL")
    parser.add_argument("--minutes", type=float, default=15.0, help="time that is shown")
    parser.add_argument("--scrape-seconds", type=float, default=15.0, help="as Prometheus does it")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the pictures")
    options = parser.parse_args()
    names = options.names or there
    span = Span.last(options.minutes * 60, options.scrape_seconds)
    draw(names, options.prometheus, options.out, span)


if __name__ == "__main__":
    main()
