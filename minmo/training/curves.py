"""Curves of a run as CSV: a row for each few steps, columns as they come up."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

Row = Mapping[str, float]


class Curve:
    """One CSV file; its first column is `step`.

    Args:
        path: of the file; what is there is continued.
        step: up to which rows are kept, where the run goes on from; 0 to start anew.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        kept = (
            [row for row in read_curve(path) if row.get("step", math.inf) <= step]
            if path.exists()
            else []
        )
        self._columns = list(dict.fromkeys(key for row in kept for key in row)) or ["step"]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(kept)

    def add(self, step: int, values: Row) -> None:
        """Adds a row; it is in the file when this returns."""
        row = {"step": float(step), **values}
        new = [key for key in row if key not in self._columns]
        if new:
            rows = read_curve(self._path)
            self._columns += new
            self._rewrite(rows)
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow(self._cells(row))

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        partial = self._path.with_suffix(".part")
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns)
            writer.writerows(self._cells(row) for row in rows)
        partial.replace(self._path)

    def _cells(self, row: Row) -> list[str]:
        return [_shown(row[key]) if key in row else "" for key in self._columns]


def read_curve(path: Path) -> list[dict[str, float]]:
    """Rows of a curve; empty cells are left out."""
    with path.open(newline="") as file:
        return [
            {key: float(cell) for key, cell in row.items() if key and cell}
            for row in csv.DictReader(file)
        ]


def _shown(value: float) -> str:
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.7g}"
