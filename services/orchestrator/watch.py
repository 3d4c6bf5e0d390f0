"""What the orchestrator's process lacks: Redis, a service, the right time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import grpc
from redis.exceptions import RedisError

from minmo.rpc.following import GRACE_SECONDS, follow
from minmo.rpc.health import Readiness
from services.orchestrator.store import SessionStore

Service = Literal["encoder", "llm", "voice_decoder"]

_PROBE_SECONDS = 1.0
_MOST_CLOCK_DIFFERENCE_SECONDS = 60.0


async def watch_service(
    readiness: Readiness,
    service: Service,
    channel: grpc.aio.Channel,
    why: Callable[[], Awaitable[str]],
    *,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Says while no replica of a service is ready; runs until cancelled.

    Args:
        readiness: of the process.
        service: which.
        channel: over which conversations call it.
        why: asks it what it lacks.
        grace_seconds: how long it may be away; conversations look for it meanwhile.
    """

    def tell(problem: str) -> None:
        if problem:
            readiness.set_not_ready(f"no {service} is ready: {problem}", service)
        else:
            readiness.set_ready(service)

    await follow(channel, tell, why, grace_seconds=grace_seconds)


async def watch_store(
    readiness: Readiness,
    store: SessionStore,
    *,
    grace_seconds: float = GRACE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> None:
    """Says while turns cannot be written, or this machine's clock is wrong; runs until cancelled.

    Turns are in the order of their times, which several replicas write: that of Redis is the one
    that all know. Nothing else depends on the clock: deadlines are measured with one that never
    jumps, leases and expiries by Redis.

    Args:
        readiness: of the process.
        store: of the sessions.
        grace_seconds: how long Redis may be away; conversations wait for it meanwhile.
        clock: this machine's.
    """
    lost_since = -grace_seconds
    while True:
        problem, now = await store.probe(), time.monotonic()
        if not problem:
            lost_since = 0.0
            readiness.set_ready("redis")
            await _compare_clocks(readiness, store, clock)
        elif not lost_since:
            lost_since = now
        if lost_since and now - lost_since >= grace_seconds:
            readiness.set_not_ready(problem, "redis")
        await asyncio.sleep(_PROBE_SECONDS)


async def _compare_clocks(
    readiness: Readiness, store: SessionStore, clock: Callable[[], float]
) -> None:
    try:
        difference = clock() - await store.clock()
    except (RedisError, OSError):
        return
    if abs(difference) <= _MOST_CLOCK_DIFFERENCE_SECONDS:
        readiness.set_ready("clock")
        return
    way = "ahead of" if difference > 0 else "behind"
    readiness.set_not_ready(
        f"this machine's clock is {abs(difference):.0f} s {way} that of Redis", "clock"
    )
