"""`minmo data duplex` and `minmo data asides`: simulated conversations, and what they need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json
from minmo.cli.progress import shown

Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")]


def duplex(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="Folders of spoken clips, asides among them."),
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the scenes.")],
    hours: Annotated[
        float, typer.Option(min=0.001, max=10_000, help="Of conversation in train.")
    ] = 10.0,
    hear: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Scenes of each set to write as stereo WAV, to listen."),
    ] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Simulate conversations of spoken clips, for the full-duplex predictor.

    Turns, pauses, back-channels, interruptions, noise and echo. Scenes are recipes of which clips
    are heard when, so they take no room; the clips must stay where they are.

    Example: minmo data duplex ~/speech ~/asides --out ~/scenes --hours 10
    """
    began = time.monotonic()
    with _explained(), shown("seconds of scenes", quiet=as_json) as show:
        from minmo.training.data.duplex import make_scenes
        from minmo.training.data.duplex_rendering import write_heard

        places = [folder.expanduser() for folder in folders]
        made = make_scenes(
            out.expanduser(), places, hours, seed, lambda done, of: show(int(done), int(of))
        )
        heard = write_heard(out.expanduser(), hear) if hear else None
    if as_json:
        told = {one.split: {"scenes": one.scenes, "kinds": one.kinds} for one in made}
        hours_of = {one.split: round(one.seconds / 3600, 4) for one in made}
        typer.echo(json.dumps({"folder": str(out), "sets": told, "hours": hours_of}, indent=2))
        return
    for one in made:
        kinds = ", ".join(f"{count} {kind}" for kind, count in one.kinds.items())
        typer.echo(f"{one.split}: {one.scenes} scenes, {one.seconds / 3600:.2f} h ({kinds})")
    typer.echo(f"in {out} ({time.monotonic() - began:.0f} s)")
    if heard is not None:
        typer.echo(f"to be heard in {heard}: the user on the left, the assistant on the right")


def asides(
    out: Annotated[Path, typer.Option(dir_okay=False, help="File of the texts, .jsonl[.gz].")],
    each: Annotated[
        int, typer.Option(min=1, max=30, help="Of each kind that every voice says.")
    ] = 2,
    voices: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of a set at most; by default all.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="That of `minmo data texts`: so the sets share no voice.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Write what people say into other speech, to be spoken by `minmo data speech`.

    Back-channels ("mm-hm"), fillers ("um") and beginnings of interruptions ("wait").

    Example: minmo data asides --out asides.jsonl && minmo data speech asides.jsonl --out ~/asides
    """
    with _explained(), shown("phonemes", quiet=as_json) as show:
        from minmo.training.data import duplex_asides
        from minmo.training.data.jsonl import write_lines
        from minmo.training.data.phonemes import make_phonemes

        lines = list(duplex_asides.asides(each, seed, voices))
        write_lines(out, (line.to_json() for line in lines))
        make_phonemes(out, lines, lambda what: typer.echo(what, err=True), show)
    if as_json:
        typer.echo(json.dumps({"utterances": len(lines), "file": str(out)}))
    else:
        typer.echo(f"{len(lines)} utterances in {out}")


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what can go wrong into the command line's words."""
    try:
        from minmo.training.data.errors import DataError
        from minmo.training.errors import TrainingError
    except ImportError as error:
        raise InputError(f"scenes need {error.name}: pip install 'minmo[train]'") from error
    try:
        yield
    except (DataError, TrainingError) as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        typer.echo("stopped: run it again, the same seed gives the same scenes", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
