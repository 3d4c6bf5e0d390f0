"""When a process that died is started again, and when that is pointless."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Backoff:
    """Delays that double from one death to the next, until there were too many.

    Attributes:
        first_seconds: delay after the first death.
        limit_seconds: longest delay.
        window_seconds: time that a death counts.
        max_deaths: deaths within the window from which on there is no further start.
    """

    first_seconds: float = 0.2
    limit_seconds: float = 5.0
    window_seconds: float = 60.0
    max_deaths: int = 6
    _deaths: deque[float] = field(default_factory=deque, init=False)

    def next_delay(self, now_seconds: float) -> float | None:
        """Records a death; returns the seconds to wait before the next start, None to give up."""
        self._deaths.append(now_seconds)
        while self._deaths[0] < now_seconds - self.window_seconds:
            self._deaths.popleft()
        if len(self._deaths) >= self.max_deaths:
            return None
        return min(self.limit_seconds, self.first_seconds * 2.0 ** (len(self._deaths) - 1))

    @property
    def deaths(self) -> int:
        """Deaths that count at the moment."""
        return len(self._deaths)
