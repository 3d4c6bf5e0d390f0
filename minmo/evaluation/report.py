"""Tables of figures: for a terminal, for Markdown, for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minmo.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Table:
    """Figures as people read them.

    Attributes:
        title: what they are.
        header: of the columns.
        rows: of cells; the first columns are words.
        notes: below it.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = [f"| {' | '.join(cells)} |" for cells in lines]
        return "\n".join([f"{self.title}:", "", *body, *([""] if self.notes else []), *self.notes])


def percent(estimate: Estimate, *, signed: bool = False) -> str:
    """A share and its interval in per cent: `12.3 (10.1 to 14.9)`."""
    return _with_interval(estimate, 100, ".1f", signed=signed)


def plain(estimate: Estimate, digits: int = 2) -> str:
    """A figure and its interval: `0.93 (0.90 to 0.97)`."""
    return _with_interval(estimate, 1, f".{digits}f", signed=False)


def number(value: float, form: str) -> str:
    """A number, or a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "-"


def _with_interval(estimate: Estimate, scale: float, form: str, *, signed: bool) -> str:
    sign = "+" if signed else ""
    value, low, high = (
        number(scale * part, sign + form) for part in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"
