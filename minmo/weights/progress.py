"""How preparation says how far it is: bars on a terminal, lines elsewhere, or nothing."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Hears of tasks by name; a task without a total is one whose end cannot be foreseen."""

    def started(self, task: str, total_bytes: int | None) -> None:
        """A task begins."""

    def reached(self, task: str, done_bytes: int) -> None:
        """A task has done so many bytes since its start, those of an earlier run included."""

    def finished(self, task: str) -> None:
        """A task has ended well."""


class NoProgress:
    """Says nothing."""

    def started(self, task: str, total_bytes: int | None) -> None:
        """Ignore it."""

    def reached(self, task: str, done_bytes: int) -> None:
        """Ignore it."""

    def finished(self, task: str) -> None:
        """Ignore it."""


class LineProgress:
    """One line for each finished task: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._started: dict[str, float] = {}
        self._totals: dict[str, int | None] = {}

    def started(self, task: str, total_bytes: int | None) -> None:
        """Remember when it began."""
        self._started[task] = time.monotonic()
        self._totals[task] = total_bytes

    def reached(self, task: str, done_bytes: int) -> None:
        """Ignore it: a line for each block would drown the log."""

    def finished(self, task: str) -> None:
        """Write the line."""
        seconds = time.monotonic() - self._started.pop(task)
        total = self._totals.pop(task)
        size = "" if total is None else f", {total / 1e6:.1f} MB"
        print(f"{task}: done in {seconds:.1f} s{size}", file=self._stream, flush=True)


class BarProgress:
    """Bars with bytes and rate, a spinner for tasks without a total."""

    def __init__(self, bars: Bars) -> None:
        """Draw on bars that are already shown."""
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def started(self, task: str, total_bytes: int | None) -> None:
        """Add its bar."""
        self._tasks[task] = self._bars.add_task(task, total=total_bytes)

    def reached(self, task: str, done_bytes: int) -> None:
        """Move its bar."""
        self._bars.update(self._tasks[task], completed=done_bytes)

    def finished(self, task: str) -> None:
        """Fill its bar."""
        number = self._tasks.pop(task)
        total = self._bars.tasks[self._bars.task_ids.index(number)].total
        total = 1 if total is None else total
        self._bars.update(number, total=total, completed=total)


def shown_on(stream: TextIO = sys.stderr) -> AbstractContextManager[Progress]:
    """Return bars where `stream` is a terminal, else lines; use it as a context manager."""
    console = Console(file=stream)
    return _Bars(console) if console.is_terminal else nullcontext(LineProgress(stream))


class _Bars(AbstractContextManager[Progress]):
    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return BarProgress(self._bars)

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
