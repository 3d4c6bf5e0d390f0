"""`minmo describe`: the modules of a preset, their parameters beside the paper's, their rates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from minmo.cli.errors import InputError
from minmo.cli.options import Json

if TYPE_CHECKING:
    from minmo.presets.description import Description, ModuleDescription


_WIDE = 500
_WHAT, _PROSE = "what it is", 24


def describe(
    preset: Annotated[
        str, typer.Option(help="A built-in preset, 8b or mini, or the path of a TOML file.")
    ] = "mini",
    as_json: Json = False,
) -> None:
    """Show a preset's modules, shapes, parameters and rates beside the paper's figures.

    No weights are read and none are needed.

    Example: minmo describe --preset 8b
    """
    from minmo.presets import PresetError, load_preset
    from minmo.presets.description import describe as describe_preset

    try:
        description = describe_preset(load_preset(preset))
    except PresetError as error:
        raise InputError(str(error)) from error
    if as_json:
        typer.echo(json.dumps(as_dict(description), indent=2))
    else:
        console = Console(highlight=False)
        # A pipe or a file has no width.
        show(description, console if console.is_terminal else Console(highlight=False, width=_WIDE))


def as_dict(description: Description) -> dict[str, object]:
    """The description for programs."""
    from dataclasses import asdict

    content = asdict(description)
    for shown, limit in zip(content["limits"], description.limits, strict=True):
        shown["holds"] = limit.holds
    return content


def show(description: Description, console: Console) -> None:
    """Prints the description for people, in as many tables as the console's width asks for."""
    console.print(f"[bold]{description.preset}[/]: {description.summary}\n")
    table = _modules(description, shapes=True)
    needed = Measurement.get(console, console.options.update(width=_WIDE), table).maximum
    what = max(len(module.what) for module in description.modules)
    if needed - what + _PROSE > console.width:
        console.print(_modules(description, shapes=False))
        console.print()
        table = _shapes(description)
    console.print(table)
    notes = {module.note: None for module in (*description.modules, description.total)}
    for number, note in enumerate([note for note in notes if note], 1):
        console.print(f"  {number}) {note}", style="dim")
    console.print()
    console.print(_streams(description))
    for limit in description.limits:
        mark = "[green]✓[/]" if limit.holds else "[red]too large[/]"
        found = f"{limit.found:.1f} of at most {limit.limit:g} {limit.unit}"
        console.print(f"{limit.name}: {found} {mark}")


def _modules(description: Description, *, shapes: bool) -> Table:
    """Modules and their parameters, and, where there is room, what they take and give."""
    compared = description.total.paper is not None
    table = _table(_WHAT, *(("takes", "gives") if shapes else ()))
    table.add_column("parameters", justify="right", no_wrap=True)
    if compared:
        for name in ("paper", "ratio"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    rows = (*description.modules, description.total)
    notes = list({module.note: None for module in rows if module.note})
    for module in rows:
        cells = [module.what, *((module.input, module.output) if shapes else ())]
        cells = [module.name, *map(escape, cells), f"{module.parameters:,}"]
        if compared:
            cells += _beside(module, notes)
        if module is description.total:
            table.add_section()
        table.add_row(*cells)
    return table


def _shapes(description: Description) -> Table:
    table = _table("takes", "gives")
    for module in description.modules:
        table.add_row(module.name, escape(module.input), escape(module.output))
    return table


def _table(*columns: str) -> Table:
    """A table of modules; only what they are is wrapped, names are what one types elsewhere."""
    table = Table(box=None, pad_edge=False)
    table.add_column("module", no_wrap=True)
    for column in columns:
        prose = column == _WHAT
        table.add_column(column, no_wrap=not prose, min_width=_PROSE if prose else None)
    return table


def _beside(module: ModuleDescription, notes: list[str]) -> list[str]:
    if module.paper is None or module.ratio is None:
        return ["", "", ""]
    mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: ""}[module.passes]
    note = f" {notes.index(module.note) + 1})" if module.note else ""
    return [module.paper, f"{module.ratio:.3f}", f"{mark}{note}"]


def _streams(description: Description) -> Table:
    table = Table("stream", box=None, pad_edge=False)
    table.add_column("a second", justify="right")
    table.add_column("one for")
    for stream in description.streams:
        table.add_row(stream.name, f"{stream.rate_hz:,.2f}".rstrip("0").rstrip("."), stream.per)
    return table
