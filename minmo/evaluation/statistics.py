"""Confidence intervals by bootstrap over clips, paired where two systems heard the same ones.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.int64]
RESAMPLES = 1000
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; NaN where it cannot be told."""

    value: float
    low: float
    high: float


def bootstrap(
    count: int,
    statistic: Callable[[Rows], float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The figure of all clips, and where 95 % of resampled sets of clips have it.

    Args:
        count: clips.
        statistic: the figure of the clips with these numbers, `[clips]`, some of them several
            times. A difference of two systems reads both at the same numbers, so it is paired.
        seed: of the resampling.
        resamples: how many sets are drawn.

    Raises:
        ValueError: there are no clips.
    """
    if count < 1:
        raise ValueError("there are no clips to tell anything of")
    generator = np.random.default_rng(seed)
    drawn = np.array(
        [statistic(generator.integers(0, count, count)) for _ in range(resamples)], dtype=np.float64
    )
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, _TAILS) if len(known) else (np.nan, np.nan)
    return Estimate(float(statistic(np.arange(count))), float(low), float(high))


def rate(parts: ArrayLike, wholes: ArrayLike) -> Callable[[Rows], float]:
    """The statistic of a rate, such as words that are wrong over words: `[clips]` each."""
    above, below = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)

    def statistic(rows: Rows) -> float:
        total = below[rows].sum()
        return float(above[rows].sum() / total) if total else float("nan")

    return statistic


def mean(values: ArrayLike) -> Callable[[Rows], float]:
    """The statistic of a mean of `[clips]`."""
    known = np.asarray(values, np.float64)
    return lambda rows: float(known[rows].mean())


def difference(
    first: Callable[[Rows], float], second: Callable[[Rows], float]
) -> Callable[[Rows], float]:
    """How far the first figure is above the second, on the same clips."""
    return lambda rows: first(rows) - second(rows)


def ratio(
    first: Callable[[Rows], float], second: Callable[[Rows], float]
) -> Callable[[Rows], float]:
    """The first figure over the second, on the same clips."""

    def statistic(rows: Rows) -> float:
        below = second(rows)
        return first(rows) / below if below else float("nan")

    return statistic
