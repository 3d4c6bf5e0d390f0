"""`minmo weights`: fetch and prepare what a preset needs, or list it."""

import json
import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from minmo.weights import NoProgress, WeightsError, ensure, shown_on
from minmo.weights.prepare import states

app = typer.Typer(
    help=(
        "Fetch and prepare the pretrained weights of a preset.\n\n"
        "Example: minmo weights --preset mini --only llm"
    ),
    invoke_without_command=True,
)

_Preset = Annotated[str, typer.Option(help="The preset whose weights are meant.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback()
def fetch(
    context: typer.Context,
    preset: _Preset = "mini",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this part: voice_encoder, llm, vad or triton. Repeatable."),
    ] = None,
    as_json: _Json = False,
    from_hub: Annotated[
        bool, typer.Option("--from-hub", help="Take models from the Hugging Face hub.")
    ] = False,
    keep_downloads: Annotated[
        bool, typer.Option("--keep-downloads", help="Keep the archives after they were used.")
    ] = False,
) -> None:
    """Fetch and prepare what a preset needs; what is ready stays as it is.

    Example: minmo weights --preset mini --only llm
    """
    if context.invoked_subcommand is not None:
        return
    started = time.monotonic()
    try:
        with shown_on(sys.stderr) as progress:
            ensure(
                preset,
                NoProgress() if as_json else progress,
                only=tuple(only or ()),
                origin="hub" if from_hub else None,
                keep_downloads=keep_downloads,
            )
    except WeightsError as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo("stopped; run it again to go on from here", err=True)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(preset)
    else:
        seconds = time.monotonic() - started
        typer.echo(f"the weights of {preset} are ready ({seconds:.1f} s)")


@app.command("list")
def list_parts(preset: _Preset = "mini", as_json: _Json = False) -> None:
    """Show what is prepared, its size, its licence and where it comes from.

    Example: minmo weights list --json
    """
    try:
        if as_json:
            _print_json(preset)
            return
        table = Table("part", "state", "MB", "licence", "from", box=None)
        for state in states(preset):
            shown = "ready" if state.ready else f"missing ({state.download_bytes / 1e6:.0f} MB)"
            size = f"{state.size_bytes / 1e6:.1f}"
            table.add_row(state.module, shown, size, state.licence, ", ".join(state.sources))
        Console(soft_wrap=True).print(table)
    except WeightsError as error:
        _fail(error)


def _print_json(preset: str) -> None:
    parts = [asdict(state) for state in states(preset)]
    typer.echo(json.dumps({"preset": preset, "parts": parts}, indent=2))


def _fail(error: WeightsError) -> None:
    typer.echo(f"minmo weights: {error}", err=True)
    raise typer.Exit(1)
