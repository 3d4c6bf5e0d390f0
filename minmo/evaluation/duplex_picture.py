"""The curves of `minmo eval duplex` as one picture: each system at every setting of its knobs."""

from __future__ import annotations

from pathlib import Path

from minmo.evaluation.duplex import DuplexReport
from minmo.evaluation.duplex_questions import Wanted

_PANELS: tuple[tuple[Wanted, str, str], ...] = (
    ("answer", "pauses taken, %", "mean seconds to the answer"),
    ("stop", "stops without an interruption, %", "mean seconds to the stop"),
)


def draw(report: DuplexReport, path: Path) -> None:
    """Draws both decisions side by side; nearer to the lower left corner is better.

    Args:
        report: with the curves; a dot is where a system is used, with the name of the setting.
        path: of the file, of which `minmo.pictures.check` has said that it can be drawn.

    Raises:
        OSError: it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    colours = {one.system: f"C{number}" for number, one in enumerate(report.curves)}
    for axes, (wanted, across, upwards) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for curve in report.curves:
            if curve.wanted != wanted:
                continue
            taken, colour = [100 * share for share in curve.taken], colours[curve.system]
            axes.plot(taken, curve.waited, color=colour, label=curve.system)
            for name, place in curve.marked.items():
                at = taken[place], curve.waited[place]
                axes.plot(*at, "o", color=colour)
                axes.annotate(name, at, fontsize="small", xytext=(4, 4), textcoords="offset points")
        axes.set(xlabel=across, ylabel=upwards)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    unfinished = path.with_name(f".{path.name}.part")
    ending = path.suffix.lower()
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minmo"}):
        metadata = {"Date": None} if ending == ".svg" else None
        figure.savefig(unfinished, format=ending.removeprefix("."), metadata=metadata)
    unfinished.replace(path)
