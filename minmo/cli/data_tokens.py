"""`minmo data tokens`: recordings to speech tokens, which the speaking stages learn from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minmo.cli.errors import EXIT_INTERRUPTED, InputError
from minmo.cli.options import Json
from minmo.cli.progress import shown

if TYPE_CHECKING:
    from minmo.training.data.tokens import Named


def tokens(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of shards.")],
    sets: Annotated[str, typer.Option(metavar="SET,...", help="The sets.")] = "train,valid",
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Shards at once; by default as many as cores."),
    ] = None,
    preset: Annotated[str, typer.Option(help="The preset whose speech tokenizer names.")] = "mini",
    as_json: Json = False,
) -> None:
    """Name the speech tokens of clips, for token2wav and the voice token LM to learn from.

    They lie in .tokens/ of each folder. Stopped at any time, it goes on with the next shard.

    Example: minmo data tokens ~/speech ~/kathleen-24k --workers 2
    """
    from minmo.stack.threads import available_cores

    names = [name.strip() for name in sets.split(",") if name.strip()]
    if not names:
        raise InputError("--sets names no set: give them with commas between, as in train,valid")
    began = time.monotonic()
    with _explained(), shown("clips", quiet=as_json) as show:
        from minmo.training.data.tokens import name_tokens

        def told(now: Named, clips: int) -> None:
            speed = now.seconds / max(time.monotonic() - began, 1e-9)
            show(now.clips, clips, f"{now.seconds / 3600:.2f} h, {speed:.0f} times real time")

        named = name_tokens(folders, names, preset, workers or available_cores(), told)
    _print(named, time.monotonic() - began, as_json=as_json)


def _print(named: Named, seconds: float, *, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({**asdict(named), "took_seconds": round(seconds, 1)}, indent=2))
        return
    known = f"; {named.known} shards had theirs" if named.known else ""
    typer.echo(
        f"{named.tokens} speech tokens of {named.clips} clips, {named.seconds / 3600:.2f} h, in "
        f"{named.shards} shards ({seconds:.0f} s){known}"
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what can go wrong into the command line's words."""
    from minmo.training.errors import TrainingError

    try:
        yield
    except TrainingError as error:
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        typer.echo("stopped: whole shards keep their tokens; run it again to go on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
