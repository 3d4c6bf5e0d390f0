"""When a service that was lost is looked for again."""

from __future__ import annotations

import asyncio

import grpc

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
