"""What Ctrl-C and SIGTERM do: the first stops in order, the second kills."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_until_signal(
    work: Coroutine[Any, Any, Result], kill_now: Callable[[], None]
) -> Result:
    """Runs `work` and returns what it does, unless a signal comes first.

    The first SIGINT, SIGTERM or SIGHUP cancels `work`, whose ``finally`` then has the time that it
    needs; each further one calls `kill_now`. For the main thread.

    Raises:
        KeyboardInterrupt: a signal came, and `work` has ended.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if interrupted:
            kill_now()
        else:
            interrupted = True
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            result = await task
            if not interrupted:
                return result
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
    if interrupted:
        raise KeyboardInterrupt
    raise asyncio.CancelledError
