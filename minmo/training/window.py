"""What happened since the last row of a run's curve."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor


class Window:
    """What happened since the last row of the curve."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = self._steps = self._good = self._clips = 0
        self._norms = self._rate = 0.0
        self._began = time.monotonic()

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Takes the losses of a batch in; they stay on their device until they are asked for."""
        for name, value in parts.items():
            new = value.detach().float()
            self._sums[name] = self._sums[name] + new if name in self._sums else new
        self._batches += 1

    def end_step(self, norm: float, rate: float, clips: int, *, skipped: bool) -> None:
        """Takes what is known once a step."""
        self._steps, self._clips, self._rate = self._steps + 1, self._clips + clips, rate
        if not skipped:
            self._norms, self._good = self._norms + norm, self._good + 1

    def latest(self) -> dict[str, float]:
        """Mean losses and clips in a second, so far."""
        values = {name: float(value) / self._batches for name, value in self._sums.items()}
        took = max(time.monotonic() - self._began, 1e-9)
        return values | {"clips/s": self._clips / took}

    def take(self) -> dict[str, float]:
        """The row's figures; the next window begins. Empty where nothing happened."""
        if not self._steps:
            return {}
        row = self.latest()
        row["clips_per_second"] = row.pop("clips/s")
        row["gradient_norm"] = self._norms / max(1, self._good)
        row["learning_rate_factor"] = self._rate
        self._clear()
        return row
