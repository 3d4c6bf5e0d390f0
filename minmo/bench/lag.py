"""How late this process itself is: what it measures of others is late by as much."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from minmo.bench.figures import percentile

_STEP_SECONDS = 0.01
LATE_P99_MS = 20.0
"""A frame: audio that is sent or noticed later than this is not in time by the client's fault."""


@dataclass(frozen=True)
class Lag:
    """How much later than it asked the event loop woke a task up, in milliseconds.

    Attributes:
        p99_ms: 99th percentile.
        worst_ms: the longest.
    """

    p99_ms: float
    worst_ms: float

    @property
    def is_late(self) -> bool:
        """Whether the measuring process was too late for its figures to be the servers'."""
        return self.p99_ms > LATE_P99_MS


class LagProbe:
    """Asks the event loop a hundred times a second to be woken up, and notes by how much later."""

    def __init__(self) -> None:
        self._late_ms: list[float] = []

    async def run(self) -> None:
        """Measures until it is cancelled."""
        while True:
            due = time.monotonic() + _STEP_SECONDS
            await asyncio.sleep(_STEP_SECONDS)
            self._late_ms.append(max(0.0, time.monotonic() - due) * 1000)

    @property
    def count(self) -> int:
        """Times that were measured so far: a place for `since`."""
        return len(self._late_ms)

    def since(self, count: int = 0) -> Lag:
        """The lag from a place on."""
        late_ms = self._late_ms[count:]
        return Lag(percentile(late_ms, 0.99) if late_ms else 0.0, max(late_ms, default=0.0))
