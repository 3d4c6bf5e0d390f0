"""Thresholds of the full-duplex predictor: from which probability on the floor is taken.

A development set says which thresholds are patient and which are eager; they travel in the header
of the predictor's file, and `eagerness` moves between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Final

METADATA_KEY: Final = "operating_points"
"""Under which a safetensors file's header has them."""


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds for one eagerness; all are 0 to 1.

    Attributes:
        eagerness: 0 is patient, 1 eager, 0.5 what is used where nobody chooses.
        assistant_turn: probability from which on the assistant answers.
        user_turn: probability from which on the assistant stops.
    """

    eagerness: float
    assistant_turn: float
    user_turn: float


DEFAULT_POINTS: Final = (
    OperatingPoint(0.0, 0.8, 0.8),
    OperatingPoint(0.5, 0.5, 0.5),
    OperatingPoint(1.0, 0.3, 0.3),
)
"""Of a predictor whose file has none."""


def point_at(points: Sequence[OperatingPoint], eagerness: float) -> OperatingPoint:
    """The thresholds for an eagerness: between two points they lie on a line.

    Args:
        points: at least one, by rising eagerness.
        eagerness: 0 to 1; beyond the first or last point that point counts.
    """
    if eagerness <= points[0].eagerness:
        return points[0]
    for low, high in pairwise(points):
        if eagerness <= high.eagerness:
            share = (eagerness - low.eagerness) / (high.eagerness - low.eagerness)
            return OperatingPoint(
                eagerness,
                low.assistant_turn + share * (high.assistant_turn - low.assistant_turn),
                low.user_turn + share * (high.user_turn - low.user_turn),
            )
    return points[-1]


def to_metadata(points: Iterable[OperatingPoint]) -> dict[str, str]:
    """What a file's header gets."""
    return {METADATA_KEY: json.dumps([asdict(point) for point in points])}


def from_metadata(metadata: dict[str, str]) -> tuple[OperatingPoint, ...]:
    """The points that a file's header has, by rising eagerness; `DEFAULT_POINTS` if it has none.

    Raises:
        ValueError: they cannot be read, or one has a value that is not 0 to 1, or two have the
            same eagerness.
    """
    if METADATA_KEY not in metadata:
        return DEFAULT_POINTS
    try:
        found = [OperatingPoint(**point) for point in json.loads(metadata[METADATA_KEY])]
        found.sort(key=lambda point: point.eagerness)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{METADATA_KEY} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"{METADATA_KEY} is empty: one point is needed at least")
    for point in found:
        for field in fields(point):
            value = getattr(point, field.name)
            if not 0 <= value <= 1:
                raise ValueError(f"{METADATA_KEY}: {field.name} is {value}; it must be 0 to 1")
    for low, high in pairwise(found):
        if low.eagerness == high.eagerness:
            raise ValueError(f"{METADATA_KEY} has two points of eagerness {low.eagerness}")
    return tuple(found)
