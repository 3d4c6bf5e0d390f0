"""Whether there is a replica of another service that can be called."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import grpc
import structlog

from minmo.rpc import client

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

GRACE_SECONDS = 5.0
"""How long a service may be away before it counts as lost: a restart is no outage."""
_ASK_SECONDS = 2.0
_AGAIN_SECONDS = 1.0


async def keep_running(work: Callable[[], Awaitable[None]]) -> None:
    """Runs what never ends by itself until cancelled; begins again where it fails.

    What watches something must outlive every surprise: nobody else would notice.
    """
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            # gRPC says so too of calls that it has cancelled itself.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        except Exception:
            log.exception("watching failed, and goes on")
        await asyncio.sleep(_AGAIN_SECONDS)


async def follow(
    channel: grpc.aio.Channel,
    tell: Callable[[str], None],
    why: Callable[[], Awaitable[str]],
    *,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Tells what stands in the way of calls over a channel; runs until cancelled.

    Args:
        channel: one of `minmo.rpc.client`: it is ready while a replica is that says that it is.
        tell: gets the problem at once if there is one at the beginning, later when it has lasted
            for `grace_seconds`; "" when there is none (any more).
        why: asks the service what it lacks.
        grace_seconds: see above.
    """
    lost_since = -grace_seconds
    while True:
        state = channel.get_state(try_to_connect=True)
        # A channel that balances by session connects only for calls.
        ready = state is grpc.ChannelConnectivity.READY or not await client.problem_over(channel)
        now, wait = time.monotonic(), _ASK_SECONDS
        if ready:
            lost_since = 0.0
            tell("")
        elif not lost_since:
            lost_since = now
        if lost_since and now - lost_since < grace_seconds:
            wait = min(wait, lost_since + grace_seconds - now)
        elif lost_since:
            tell(await _in_time(why) or "no answer")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await channel.wait_for_state_change(state)


async def _in_time(why: Callable[[], Awaitable[str]]) -> str:
    try:
        async with asyncio.timeout(2 * _ASK_SECONDS):
            return await why()
    except TimeoutError:
        return "no answer"
