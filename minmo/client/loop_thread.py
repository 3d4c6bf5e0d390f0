"""An event loop on a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import wait
from typing import Any, TypeVar

Result = TypeVar("Result")

# What another thread asked of a loop that was just stopped is never done: it must not wait for it.
_LOOK_SECONDS = 1.0


class LoopThread:
    """Runs coroutines for threads that wait for them; the thread lives while anybody uses it.

    All threads of a process share one loop, as gRPC is at its best with one::

        shared.acquire()
        try:
            shared.run(coroutine)
        finally:
            shared.release()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def acquire(self) -> None:
        """Starts the thread unless it runs."""
        with self._lock:
            if self._users == 0:
                started = threading.Event()
                self._thread = threading.Thread(
                    target=self._serve, args=(started,), name="minmo client", daemon=True
                )
                self._thread.start()
                started.wait()
            self._users += 1

    def release(self) -> None:
        """Ends the thread if nobody else uses it."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                assert self._loop is not None and self._thread is not None, "was acquired"
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._thread = self._loop = None

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """What a coroutine returns or raises; Ctrl-C cancels it and is raised.

        Raises:
            RuntimeError: the caller is on the loop itself and would wait for ever, or the thread
                was not acquired, or has ended meanwhile.
        """
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or threading.current_thread() is thread:
            coroutine.close()
            raise RuntimeError(
                "the conversation is not open"
                if loop is None or thread is None
                else "a callback of the client must not call it and wait: use another thread"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            while True:
                wait((future,), _LOOK_SECONDS)
                if future.done():
                    return future.result()
                if not thread.is_alive():
                    raise RuntimeError("the conversation was closed meanwhile")
        except BaseException:
            future.cancel()  # nothing happens to one that has ended by itself
            raise

    def _serve(self, started: threading.Event) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._loop.call_soon(started.set)
            self._loop.run_forever()


shared = LoopThread()
"""The process' one."""
