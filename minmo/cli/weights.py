"""`minmo weights`: fetch what a preset needs, import what others published, or list it."""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

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
            fetched = f" ({state.download_bytes / 1e6:.0f} MB)" if state.download_bytes else ""
            shown = "ready" if state.ready else f"missing{fetched}"
            size = f"{state.size_bytes / 1e6:.1f}"
            table.add_row(state.module, shown, size, state.licence, ", ".join(state.sources))
        Console(soft_wrap=True).print(table)
    except WeightsError as error:
        _fail(error)


@app.command("import")
def import_published(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER_OR_FILE",
            help="Published weights: a Hugging Face folder (Whisper, Moonshine, Llama, Qwen2.5), "
            "FunASR's SenseVoice-Small, CosyVoice 2, or one file of them; or CosyVoice's list of "
            "speakers, spk2info.pt.",
        ),
    ],
    preset: Annotated[
        str, typer.Option(help="The preset that they are for: a name, or the path of a TOML file.")
    ],
    module: Annotated[
        str | None, typer.Option(help="Only this module. By default all that are there.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="SPDX identifier to record. By default what the folder's README says."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether it would do; write nothing.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Import weights that others published, checked against the modules of a preset.

    Example: minmo weights import ~/whisper-large-v3 --preset 8b --licence Apache-2.0
    """
    from minmo.presets import PresetError, load_preset
    from minmo.weights.importing import import_weights
    from minmo.weights.spk2info import is_spk2info

    source = source.expanduser()
    if is_spk2info(source):
        _import_speakers(source, preset, module, licence, check, as_json)
        return
    try:
        with shown_on(sys.stderr) as progress:
            imported = import_weights(
                source,
                load_preset(preset),
                module=module,
                licence=licence,
                check_only=check,
                progress=NoProgress() if as_json else progress,
            )
    except (WeightsError, PresetError) as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo("stopped; the folder that was being written is not there", err=True)
        raise typer.Exit(130) from None
    if as_json:
        folders = [asdict(one) for one in imported]
        typer.echo(
            json.dumps({"preset": preset, "written": not check, "folders": folders}, indent=2)
        )
        return
    for one in imported:
        names = " and ".join(one.modules)
        what = f"{one.parameters:,} parameters, {one.size_bytes / 1e6:,.1f} MB"
        where = f"would fit into {one.folder}" if check else f"is in {one.folder}"
        typer.echo(f"{names}: {one.kind}, {what} ({', '.join(one.dtypes)}), {where}")
        for reason, count in one.unused.items():
            typer.echo(f"  left out: {count} tensors ({reason})")
        if one.licence == "NOASSERTION" and not check:
            typer.echo("  its licence is not known here; --licence records it")
    if is_spk2info(speakers := source / "spk2info.pt"):
        typer.echo(f"speakers lie beside it: minmo weights import {speakers} --preset {preset}")


def _import_speakers(
    source: Path, preset: str, module: str | None, licence: str | None, check: bool, as_json: bool
) -> None:
    from minmo.presets import PresetError, load_preset
    from minmo.weights.spk2info import import_speakers

    try:
        if module is not None:
            raise WeightsError(f"{source} holds speakers, which are no module: leave --module out")
        imported = import_speakers(source, load_preset(preset), licence=licence, check_only=check)
    except (WeightsError, PresetError) as error:
        _fail(error)
    if as_json:
        speakers = [asdict(one) for one in imported]
        shown = {"preset": preset, "written": not check, "speakers": speakers}
        typer.echo(json.dumps(shown, indent=2))
        return
    for one in imported:
        has = "no prompt"
        if one.prompt_tokens:
            has = f"a prompt of {one.prompt_tokens} speech tokens, {one.text_tokens} text tokens"
        cut = f" ({one.cut_tokens} cut at the start)" if one.cut_tokens else ""
        where = f"would fit into {one.path}" if check else f"is in {one.path}"
        typer.echo(f"speaker {one.name}: {has}{cut}, {where}")


def _print_json(preset: str) -> None:
    parts = [asdict(state) for state in states(preset)]
    typer.echo(json.dumps({"preset": preset, "parts": parts}, indent=2))


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"minmo weights: {error}", err=True)
    raise typer.Exit(1)
