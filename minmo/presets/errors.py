"""What is wrong with a preset, in words that say where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: `table.key`, or a table.
        expected: what should stand there.
        found: what does.
    """

    key: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.key}: expected {self.expected}, found {self.found}"


class PresetError(Exception):
    """A preset cannot be used; the message has a line for each problem.

    Attributes:
        problems: what is wrong, in the file's order; empty where the file itself is.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__("\n  ".join([message, *map(str, problems)]))
        self.problems = tuple(problems)
