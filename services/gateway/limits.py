"""What a caller may use: connections, audio, messages. No I/O; who calls says what time it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HOUR_SECONDS = 3600.0
MAX_CALLERS = 100_000
"""Callers whose use is remembered."""


class TokenBucket:
    """Lets so much through a second, and a burst.

    Args:
        per_second: what comes in.
        burst: what it holds.
        now: in seconds.
    """

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = now

    def left(self, now: float) -> float:
        """What may be taken now; below 0 if too much was taken."""
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._left = min(self._burst, self._left + elapsed * self._per_second)
        return self._left

    def take(self, amount: float, now: float) -> bool:
        """Takes `amount` if there is so much."""
        if self.left(now) < amount:
            return False
        self._left -= amount
        return True

    def owe(self, amount: float, now: float) -> float:
        """Takes `amount` in any case; returns how long to wait until it is paid for."""
        self.left(now)
        self._left -= amount
        return max(0.0, -self._left / self._per_second)

    def full_in(self, now: float) -> float:
        """Time until it is full again, in seconds."""
        return (self._burst - self.left(now)) / self._per_second


@dataclass
class _Use:
    connections: int
    audio: TokenBucket


class TooManyConnectionsError(Exception):
    """A caller has as many connections as it may have."""


class Quotas:
    """What all callers of this process use.

    Args:
        max_connections: of one caller.
        audio_seconds_per_hour: of one caller.
    """

    def __init__(self, max_connections: int, audio_seconds_per_hour: float) -> None:
        self._max_connections = max_connections
        self.audio_seconds_per_hour = audio_seconds_per_hour
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def connection(self, caller: str, now: float) -> Iterator[TokenBucket]:
        """Counts a connection as long as it lasts; gives the caller's audio, in seconds.

        Raises:
            TooManyConnectionsError: the caller has as many as it may have.
        """
        use = self._uses.pop(caller, None)
        if use is None:
            hourly = self.audio_seconds_per_hour
            use = _Use(0, TokenBucket(hourly / HOUR_SECONDS, hourly, now))
        self._uses[caller] = use
        self._forget(now)
        if use.connections >= self._max_connections:
            raise TooManyConnectionsError(caller)
        use.connections += 1
        try:
            yield use.audio
        finally:
            use.connections -= 1

    def _forget(self, now: float) -> None:
        """Makes room: those who use nothing and owe nothing, oldest first."""
        if len(self._uses) <= MAX_CALLERS:
            return
        for caller, use in list(self._uses.items())[: len(self._uses) - MAX_CALLERS + 1000]:
            if not use.connections and use.audio.full_in(now) <= 0:
                del self._uses[caller]
