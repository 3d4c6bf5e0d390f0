"""How much a voice has to do, for the metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from minmo.rpc import metrics
from minmo.rpc.catalogue import Named

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

WORKLOAD: dict[str, Named] = {
    "slots": metrics.VOICE_SLOTS,
    "slots_in_use": metrics.VOICE_SLOTS_IN_USE,
    "waiting": metrics.VOICE_WAITING,
    "compute_seconds": metrics.VOICE_COMPUTE,
}
"""Figures of every voice."""

ENGINE: dict[str, Named] = WORKLOAD | {
    "token_steps": metrics.VOICE_TOKEN_STEPS,
    "token_seconds": metrics.VOICE_TOKEN_STEP_SECONDS,
    "tokens": metrics.VOICE_SPEECH_TOKENS,
    "chunk_steps": metrics.VOICE_CHUNK_STEPS,
    "chunk_seconds": metrics.VOICE_CHUNK_STEP_SECONDS,
    "chunks": metrics.VOICE_CHUNKS,
}
"""Figures of the neural voice's engine."""


class CountingExecutor(ThreadPoolExecutor):
    """Threads that know how much they have to do.

    Attributes:
        slots: threads.
        slots_in_use: threads that work.
        waiting: work that waits for a thread.
        compute_seconds: time that they have worked.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self.slots = threads
        self.slots_in_use = 0
        self.waiting = 0
        self.compute_seconds = 0.0
        self._lock = threading.Lock()

    def submit(
        self,
        work: Callable[Arguments, Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Future[Result]:
        """As of any executor."""

        def counted() -> Result:
            began = time.perf_counter()
            with self._lock:
                self.waiting -= 1
                self.slots_in_use += 1
            try:
                return work(*args, **kwargs)
            finally:
                with self._lock:
                    self.slots_in_use -= 1
                    self.compute_seconds += time.perf_counter() - began

        def forget(done: Future[Result]) -> None:
            # One that runs cannot be cancelled any more.
            if done.cancelled():
                with self._lock:
                    self.waiting -= 1

        with self._lock:
            self.waiting += 1
        made = super().submit(counted)
        made.add_done_callback(forget)
        return made
