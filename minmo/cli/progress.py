"""How far a long command is: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

_LINE_SECONDS = 20.0


@contextmanager
def shown(what: str, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """Gives what shows progress, of (done, total, note): a bar on a terminal, lines elsewhere."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from minmo.cli.show import stderr

    console = stderr()
    if quiet or not console.is_terminal:
        yield _lines(what, quiet=quiet)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None, note="")

        def show_bar(done: int, total: int, note: str = "") -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield show_bar


def _lines(what: str, *, quiet: bool) -> Callable[..., None]:
    began = last = time.monotonic()

    def show_line(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if quiet or now - last < _LINE_SECONDS or not done:
            return
        last = now
        left = (now - began) / done * (total - done)
        typer.echo(f"{what}: {done} of {total}, {left / 60:.0f} min left {note}", err=True)

    return show_line
