"""`minmo train bundle` and `minmo train collect`: training on a machine without network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json


class Stages(StrEnum):
    """What a bundle trains."""

    LISTENING = "listening"
    SPEAKING = "speaking"


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
    stages: Annotated[
        Stages, typer.Option(help="What is trained there: listening, or speaking.")
    ] = Stages.LISTENING,
    voice: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of recordings of whose voice it becomes (speaking). Repeatable.",
        ),
    ] = None,
    instructed: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder of answers to spoken instructions (speaking). Repeatable.",
        ),
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
            exists=True, dir_okay=False, help="JSON file of steps, in the place of --stages."
        ),
    ] = None,
    minutes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP=MINUTES",
            help="Time of a step, as speech, adapt, pre-align, sft. Repeatable.",
        ),
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose weights are packed: voice_encoder, llm, and to speak the speech_tokenizer "
            "that is here. Repeatable."
        ),
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
    """Pack all that training needs on a GPU machine without network.

    Example: minmo train bundle bundle/ --texts texts.jsonl.gz --python 3.12

    Example: minmo train bundle bundle/ --stages speaking --recordings libri-24k --voice me-24k
    """
    from minmo.training.bundle import plan as plans
    from minmo.training.bundle import speaking
    from minmo.training.bundle.make import (
        MODULES,
        TEXTS,
        Contents,
        make,
        preset_there,
    )
    from minmo.training.bundle.wheels import ROOTS
    from minmo.weights.progress import NoProgress, shown_on
    from minmo.weights.spoken import TOKENIZER, tokenizer_folder

    with _explained(), shown_on(sys.stderr) as progress:
        heard = _folders(recordings or (), voice or (), instructed or ())
        recipes = {one.stem: f"recipes/{one.name}" for one in recipe or ()}
        if plan is not None and minutes:
            raise InputError("--minutes is for the built-in plan: write the minutes into --plan")
        packed, modules = None if texts is None else TEXTS, tuple(module or MODULES)
        if stages is Stages.SPEAKING and not module and tokenizer_folder(preset) is not None:
            modules = (*modules, TOKENIZER)
        if plan is not None:
            chosen = plans.read_plan(plan)
        elif stages is Stages.SPEAKING:
            chosen = speaking.speaking(
                preset_there(preset),
                texts=packed,
                folders=speaking.Folders(*map(_names, (recordings, voice, instructed))),
                tokenizer=TOKENIZER in modules,
                recipes=recipes,
                minutes=_minutes(minutes or ()),
            )
        elif voice or instructed:
            raise InputError("--voice and --instructed are for --stages speaking, or for a --plan")
        else:
            chosen = plans.listening(
                preset_there(preset),
                texts=packed,
                recordings=list(heard),
                recipes=recipes,
                minutes=_minutes(minutes or ()),
            )
        contents = Contents(
            plan=chosen,
            preset=preset,
            modules=modules,
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


def _folders(*given: Iterable[Path]) -> dict[str, Path]:
    """Folders of shards by the names that they have in the bundle."""
    found: dict[str, Path] = {}
    for folder in chain(*given):
        name = folder.resolve().name
        if name in found:
            raise InputError(f"{folder} and {found[name]} have the same name: rename one of them")
        found[name] = folder
    return found


def _names(folders: Sequence[Path] | None) -> list[str]:
    return [folder.resolve().name for folder in folders or ()]


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
