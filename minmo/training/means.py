"""Means of what is measured batch by batch."""

from __future__ import annotations

from torch import Tensor


class WeightedMeans:
    """Means by their names."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor | float, weight: float) -> None:
        """Takes a value in that is itself a mean over `weight` of something."""
        self._sums[name] = self._sums.get(name, 0.0) + float(value) * weight
        self._weights[name] = self._weights.get(name, 0.0) + weight

    def figures(self) -> dict[str, float]:
        """The means; of nothing there is none."""
        return {name: total / self._weights[name] for name, total in self._sums.items()}
