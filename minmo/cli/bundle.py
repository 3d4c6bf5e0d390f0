"""`minmo train bundle` and `minmo train collect`: training on a machine without network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json

_HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def bundle(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder for the parts.")],
    preset: Annotated[str, typer.Option(help="Whose modules: a name, or a TOML file.")] = "mini",
    texts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Texts to be spoken there, with their phonemes beside them.",
        ),
    ] = None,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(exists=True, file_okay=False, help="Folder of Shar folders. Repeatable."),
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Recipe instead of the packaged one of its name: pre-align.yaml. Repeatable.",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help="Any file, to {root}/files, for a plan. Repeatable."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="JSON file of steps. By default listening is trained."
        ),
    ] = None,
    minutes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP=MINUTES",
            help="Time of speech, pre-align, full-align or sft. Repeatable.",
        ),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Whose weights are packed: voice_encoder and llm. Repeatable."),
    ] = None,
    python: Annotated[str, typer.Option(help="Version of Python on that machine.")] = _HERE,
    has: Annotated[
        str, typer.Option(help="Packages that machine has, and all that they need.")
    ] = "torch,transformers,numpy",
    with_wheels: Annotated[
        bool, typer.Option("--wheels/--no-wheels", help="Pack the wheels that it lacks.")
    ] = True,
    part_mb: Annotated[
        float, typer.Option("--part-mb", min=0.5, max=4000, help="Size of a part at most, MB.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Pack all that speech-to-text training needs on a GPU machine without network.

    Example: minmo train bundle bundle/ --texts texts.jsonl.gz --python 3.12
    """
    from minmo.training.bundle import plan as plans
    from minmo.training.bundle.make import (
        MODULES,
        TEXTS,
        Contents,
        make,
        preset_there,
    )
    from minmo.training.bundle.wheels import ROOTS
    from minmo.weights.progress import NoProgress, shown_on

    with _explained(), shown_on(sys.stderr) as progress:
        heard = {folder.resolve().name: folder for folder in recordings or ()}
        recipes = {one.stem: f"recipes/{one.name}" for one in recipe or ()}
        if plan is not None and minutes:
            raise InputError("--minutes is for the built-in plan: write the minutes into --plan")
        contents = Contents(
            plan=plans.read_plan(plan)
            if plan is not None
            else plans.listening(
                preset_there(preset),
                texts=None if texts is None else TEXTS,
                recordings=list(heard),
                recipes=recipes,
                minutes=_minutes(minutes or ()),
            ),
            preset=preset,
            modules=tuple(module or MODULES),
            texts=texts,
            recordings=heard,
            files={f"recipes/{one.name}": one for one in recipe or ()}
            | {f"files/{one.name}": one for one in file or ()},
            python=python,
            has=tuple(name.strip() for name in has.split(",") if name.strip()),
            roots=ROOTS if with_wheels else {},
        )
        parts = make(
            contents,
            out,
            round(part_mb * 1e6),
            told=lambda line: None if as_json else typer.echo(line, err=True),
            progress=NoProgress() if as_json else progress,
        )
    if as_json:
        listed = [{"name": one.path.name, "size": one.size, "sha256": one.sha256} for one in parts]
        typer.echo(json.dumps({"folder": str(out), "parts": listed}, indent=2))
        return
    for one in parts:
        typer.echo(f"{one.path}  {one.size / 1e6:.1f} MB  {one.sha256}")
    total = sum(one.size for one in parts) / 1e6
    typer.echo(f"{len(parts)} parts, {total:.1f} MB; there: python3 {parts[0].path.name} FOLDER")


def collect(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Results that came back.")
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where to write; FOLDER by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Join the results that came back from a bundle's machine, and check them.

    Example: minmo train collect results/ --out trained/
    """
    from minmo.training.bundle.results import collect as join

    with _explained():
        files = join(folder, out or folder)
    if as_json:
        typer.echo(json.dumps({"files": [str(path) for path in files]}, indent=2))
        return
    for path in files:
        typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


def _minutes(given: Sequence[str]) -> dict[str, float]:
    minutes = {}
    for one in given:
        step, _, length = one.partition("=")
        try:
            minutes[step] = float(length)
        except ValueError:
            minutes[step] = 0.0
        if not 0 < minutes[step] < float("inf"):
            raise InputError(f"--minutes {one}: it is STEP=MINUTES above 0, such as speech=12")
    return minutes


@contextmanager
def _explained() -> Iterator[None]:
    from minmo.training.bundle.results import ResultsError
    from minmo.training.data.errors import DataError
    from minmo.training.errors import TrainingError

    try:
        yield
    except (TrainingError, DataError, ResultsError) as error:
        raise InputError(str(error)) from error
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, which training needs: pip install 'minmo[train]'"
        ) from error
    except KeyboardInterrupt:
        typer.echo("stopped; what was begun has been removed", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
