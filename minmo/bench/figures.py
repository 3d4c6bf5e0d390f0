"""Percentiles of what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Latencies:
    """How long something took over many times, in milliseconds; not a number if it never happened.

    Attributes:
        count: times.
        p50, p95, p99: percentiles by nearest rank.
        worst: the longest.
    """

    count: int
    p50: float
    p95: float
    p99: float
    worst: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are at most, by nearest rank; not a number if there are none.

    Args:
        values: in any order.
        share: above 0, up to 1.
    """
    if not values:
        return math.nan
    # Rounded: 0.95 * 20 is a little more than 19.
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


def latencies(values: Sequence[float]) -> Latencies:
    """Percentiles of times in milliseconds."""
    return Latencies(
        len(values),
        percentile(values, 0.5),
        percentile(values, 0.95),
        percentile(values, 0.99),
        max(values, default=math.nan),
    )
