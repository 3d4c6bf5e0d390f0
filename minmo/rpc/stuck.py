"""Whether the thread that computes still gets anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from minmo.rpc.health import Readiness

_CHECK_SECONDS = 1.0


async def watch_compute(
    readiness: Readiness, running_seconds: Callable[[], float], limit_seconds: float
) -> None:
    """Says while a computation takes so long that it will hardly end; runs until cancelled.

    Args:
        readiness: of the process.
        running_seconds: how long the computation has been running that runs now; 0 if none does.
        limit_seconds: how long one may take.
    """
    while True:
        if running_seconds() > limit_seconds:
            readiness.set_not_ready(
                f"a computation has been running for more than {limit_seconds:g} s", "compute"
            )
        else:
            readiness.set_ready("compute")
        await asyncio.sleep(_CHECK_SECONDS)
