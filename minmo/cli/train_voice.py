"""`minmo train voice`: a voice of one's own, from recordings with their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json
from minmo.cli.progress import shown

_SIGNALLED = 128
_NEEDED = ("accelerate", "jiwer", "lhotse", "yaml")
_STOPPED = "stopped: what is done stays in {run}; run it again to go on"


def voice(
    recordings: Annotated[
        Path,
        typer.Option(
            exists=True, help="Folder of recordings with a metadata.csv (id|text), or a .txt each."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the run. By default runs/NAME.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Of the speaker. By default the recordings' folder's.")
    ] = "",
    minutes: Annotated[
        float, typer.Option(min=0.01, max=100_000, help="Of training, all stages together.")
    ] = 120.0,
    init: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Voice set to begin with. By default the one that speaks here.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="The preset whose voice it becomes.")] = "mini",
    install: Annotated[
        bool,
        typer.Option(
            "--install",
            help="Let MinMo speak with it, in place of a voice that was trained here.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a voice of your own: shards, speech tokens, token2wav, vocoder, text-to-speech.

    A sentence is spoken after each stage, in previews/ of the run's folder. Stopped at any time, it
    goes on where it was when it is run again with the same options.

    Example: minmo train voice --recordings ~/my-recordings --out runs/me --minutes 120 --install
    """
    from minmo.cli.show import stderr
    from minmo.stack.threads import available_cores

    if not name:
        name = (recordings if recordings.is_dir() else recordings.parent).resolve().name
    if any(sign in name for sign in "/ .") or not name:
        raise InputError(f"--name is {name!r}: it must be one word")
    run, installed = out or Path("runs") / name, None
    with _explained(run):
        from minmo.training.voice import VoiceRun, Wish
        from minmo.training.watch import Watch

        wish = Wish(
            recordings.absolute(),
            name,
            str(Path(preset).absolute()) if Path(preset).is_file() else preset,
            minutes,
            None if init is None else init.absolute(),
        )
        watch = partial(Watch, stderr(), quiet=as_json)
        made = VoiceRun(run, wish, watch, partial(shown, quiet=as_json), available_cores())
        signal = made.go()
        if install and not signal:
            installed = made.install()
    if signal:
        typer.echo(_STOPPED.format(run=run), err=True)
        raise typer.Exit(_SIGNALLED + signal)
    if as_json:
        told = {"previews": [str(path) for path in made.previews], "voice": str(made.voice)}
        typer.echo(json.dumps({**told, "installed": str(installed) if installed else None}))
    elif installed:
        typer.echo(f"MinMo speaks with it now: {installed}; previews are in {run}")
    else:
        typer.echo(f"the voice is in {made.voice}; --install lets MinMo speak with it")


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    """Says what went wrong as the command line says everything."""
    for module in _NEEDED:
        if find_spec(module) is None:
            raise InputError(f"training needs {module}: pip install 'minmo[train]'")
    from minmo.model.speaker import SpeakerError
    from minmo.training.data.errors import DataError
    from minmo.training.errors import TrainingError

    try:
        yield
    except (DataError, SpeakerError, TrainingError) as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        typer.echo(_STOPPED.format(run=run), err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
