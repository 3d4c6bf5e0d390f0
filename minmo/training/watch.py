"""How a run shows what it does: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_EVERY_S = 0.5
_PLAIN_EVERY_S = 30.0


class Watch:
    """Shows the progress of a run. A context manager.

    Args:
        console: to write to.
        quiet: whether to show nothing.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live = console.is_terminal and not quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[note]}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._bars.add_task("training", total=1.0, note="starting")
        self._shown = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
            self._bars.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._bars.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show a step."""
        every = _EVERY_S if self._live else _PLAIN_EVERY_S
        return not self._quiet and time.monotonic() - self._shown >= every

    def step(self, number: int, done: float, left_s: float, figures: Mapping[str, float]) -> None:
        """Shows a step.

        Args:
            number: of the step.
            done: share of the run.
            left_s: seconds until it ends, as things go.
            figures: losses and speed.
        """
        if self._quiet:
            return
        self._shown = time.monotonic()
        values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        note = f"step {number}  {values}  {duration(left_s)} left"
        if self._live:
            self._bars.update(self._task, completed=done, note=note)
            self._bars.refresh()
        else:
            self._console.print(f"{100 * done:.0f} %  {note}", markup=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Shows a line that stays."""
        if not self._quiet:
            self._console.print(line, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds for people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
