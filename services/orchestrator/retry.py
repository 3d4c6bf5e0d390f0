"""When a service that was lost is looked for again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc

QUIET_SECONDS = 2.0
"""How long a service is looked for before anybody is told: another replica may be there at once."""
_BACKOFF_SECONDS = (0.0, 0.1, 0.2, 0.4, 0.8)

LOST = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""Statuses of a stream whose service has died or hangs; any other is its answer."""


async def back_off(tries: int) -> None:
    """Waits before the next try, after `tries` that failed: none at first, then up to 0.8 s."""
    await asyncio.sleep(_BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)])


class Outage:
    """Paces the search for a service that was lost.

    Args:
        seconds: how long to look for it.
        tell: gets what is wrong when the search takes longer than a moment, and "" when it is over.
    """

    def __init__(self, seconds: float, tell: Callable[[str], Awaitable[None]]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._since: float | None = None
        self._tries = 0
        self._told = False

    async def wait(self, detail: str) -> bool:
        """Waits before the next try; False if there should be none."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._tries = now, 0
        if now - self._since > self._seconds:
            return False
        if not self._told and now - self._since >= QUIET_SECONDS:
            self._told = True
            await self._tell(detail)
        await back_off(self._tries)
        self._tries += 1
        return True

    async def over(self) -> None:
        """It is there, and works."""
        self._since = None
        if self._told:
            self._told = False
            await self._tell("")
