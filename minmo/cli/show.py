"""How the command line says what goes on: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn

from minmo.stack.process import ProcessEvent, State


def stderr() -> Console:
    """Console for what goes on; results go to stdout."""
    return Console(file=sys.stderr, highlight=False)


class StackProgress:
    """Shows the start of a stack process by process, and afterwards what dies and comes back.

    Use it as a context manager around the start; `event` may be called until the stack has stopped.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or stderr()
        self._quiet = quiet
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._quiet:
            self._bars = Progress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}"),
                TextColumn("[dim]{task.fields[note]}[/]"),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def event(self, event: ProcessEvent) -> None:
        """Shows a change of a process."""
        if self._bars is not None:
            self._move_bar(self._bars, event)
        elif not self._quiet:
            line = _line(event)
            if line:
                self._console.print(line, markup=False)

    def _move_bar(self, bars: Progress, event: ProcessEvent) -> None:
        if event.name not in self._tasks:
            self._tasks[event.name] = bars.add_task(event.name, total=1, note="")
        task = self._tasks[event.name]
        match event.state:
            case State.STARTING:
                bars.update(task, note="starting")
            case State.READY:
                bars.update(task, completed=1, note=f"ready after {event.seconds:.1f} s")
            case _:
                bars.update(task, note=event.detail or str(event.state))


def _line(event: ProcessEvent) -> str:
    match event.state:
        case State.READY:
            return f"{event.name}: ready after {event.seconds:.1f} s"
        case State.DEAD:
            return f"{event.name}: {event.detail}; starts again in {event.seconds:.1f} s"
        case State.FAILED:
            return event.detail
        case State.STOPPED if event.detail:
            return f"{event.name}: did not stop in time and was {event.detail}"
        case _:
            return ""
