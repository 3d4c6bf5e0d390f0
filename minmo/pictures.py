"""Pictures of figures, as SVG or PNG by the name of the file. They need matplotlib.

`check` says before anything is measured whether one can be drawn; the others draw. A file is
whole or not there: it is written beside its place and moved.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")

_BAR_HEIGHT = 0.6
_INCHES_A_SECOND = 0.35
_NARROWEST, _WIDEST = 9.0, 60.0


@dataclass(frozen=True)
class Stretch:
    """A time in a lane of a timeline, in seconds.

    Attributes:
        lane: whose; lanes are drawn from top to bottom as they are first named.
        kind: what it is, for its colour and the legend.
    """

    lane: str
    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Mark:
    """A moment of a timeline, at `at` seconds, across a lane or (with an empty one) all lanes."""

    lane: str
    kind: str
    at: float


def check(path: Path) -> None:
    """Says what stands in the way of a picture.

    Raises:
        ValueError: its name has no ending of a picture, or matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"picture is {str(path)!r}; its name must end in {' or '.join(ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("a picture needs matplotlib: pip install 'minmo[plot]'")


def stacked_bars(
    path: Path, bars: Sequence[tuple[str, Mapping[str, float]]], *, title: str, unit: str
) -> None:
    """Draws bars that lie below each other, each a row of parts.

    Args:
        path: file to write.
        bars: from top to bottom, each its name and the length of each part by its name. A part has
            one colour in all of them, its place is that where it is first named, and one that has
            no length anywhere is not drawn.
        title: above them.
        unit: of the lengths.

    Raises:
        OSError: the file cannot be written.
    """
    figure = _figure(9.0, 1.6 + 0.6 * len(bars))
    axes = figure.subplots()
    named = dict.fromkeys(part for _, parts in bars for part in parts)
    names = [name for name in named if any(parts.get(name) for _, parts in bars)]
    places = range(len(bars))
    left = [0.0] * len(bars)
    for number, name in enumerate(names):
        lengths = [parts.get(name, 0.0) for _, parts in bars]
        drawn = axes.barh(
            places, lengths, _BAR_HEIGHT, left=left, label=name, color=f"C{number % 10}"
        )
        axes.bar_label(
            drawn,
            # A number that would not fit is left to the table.
            [f"{length:.0f}" if length > 0.04 * _longest(bars) else "" for length in lengths],
            label_type="center",
            color="white",
            fontsize="small",
        )
        left = [start + length for start, length in zip(left, lengths, strict=True)]
    for place, end in zip(places, left, strict=True):
        axes.text(end, place, f" {end:.0f}", va="center", fontweight="bold")
    axes.set_yticks(list(places), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * _longest(bars))
    axes.set(xlabel=unit, title=title)
    _legend(figure, axes)
    _save(figure, path)


def timeline(
    path: Path, stretches: Sequence[Stretch], marks: Sequence[Mark] = (), *, title: str
) -> None:
    """Draws lanes over seconds: stretches as bars, moments as signs on them.

    Raises:
        OSError: the file cannot be written.
    """
    named = [*(stretch.lane for stretch in stretches), *(mark.lane for mark in marks)]
    lanes = list(dict.fromkeys(lane for lane in named if lane))
    rows = max(1, len(lanes))
    end = max((*(s.end for s in stretches), *(m.at for m in marks)), default=0.0)
    width = min(max(_NARROWEST, _INCHES_A_SECOND * end), _WIDEST)
    figure = _figure(width, 1.8 + 0.7 * rows)
    axes = figure.subplots()
    for number, kind in enumerate(dict.fromkeys(stretch.kind for stretch in stretches)):
        chosen = [stretch for stretch in stretches if stretch.kind == kind]
        axes.barh(
            [lanes.index(stretch.lane) for stretch in chosen],
            [stretch.end - stretch.start for stretch in chosen],
            _BAR_HEIGHT,
            left=[stretch.start for stretch in chosen],
            label=kind,
            color=f"C{number % 10}",
        )
    for number, kind in enumerate(dict.fromkeys(mark.kind for mark in marks)):
        times = [mark.at for mark in marks if mark.kind == kind]
        places = [
            lanes.index(mark.lane) if mark.lane else (rows - 1) / 2
            for mark in marks
            if mark.kind == kind
        ]
        sign = "ovsD^*P"[number % 7]
        axes.plot(
            *(times, places, sign), label=kind, color="white", markeredgecolor="black", zorder=3
        )
        axes.vlines(times, -0.5, rows - 0.5, colors="grey", linestyles=":", linewidth=0.8)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 1.02 * end if end else 1.0)
    axes.set(xlabel="seconds", title=title)
    _legend(figure, axes)
    _save(figure, path)


def curves(
    path: Path,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    across: str,
    upwards: str,
) -> None:
    """Draws curves, each by its name the places across and the values upwards.

    Raises:
        OSError: the file cannot be written.
    """
    figure = _figure(8.0, 4.5)
    axes = figure.subplots()
    for name, (places, values) in series.items():
        axes.plot(places, values, marker="o", label=name)
    axes.set(xlabel=across, ylabel=upwards, title=title)
    _legend(figure, axes)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)


def _longest(bars: Sequence[tuple[str, Mapping[str, float]]]) -> float:
    return max((sum(parts.values()) for _, parts in bars), default=0.0) or 1.0


def _save(figure: Figure, path: Path) -> None:
    import matplotlib

    unfinished = path.with_name(f".{path.name}.part")
    ending = path.suffix.lower()
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minmo"}):
        figure.savefig(
            unfinished,
            format=ending.removeprefix("."),
            metadata={"Date": None} if ending == ".svg" else None,
        )
    unfinished.replace(path)
