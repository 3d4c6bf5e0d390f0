"""The one thread that computes, shared fairly by all streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from minmo.rpc import metrics
from minmo.rpc.errors import resource_exhausted, unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class ComputeQueue:
    """Runs jobs one after the other in a thread of its own, a job of each stream in turn.

    Two models at once on the same cores would take longer for both. A job whose caller has been
    cancelled is dropped before it starts.

    Args:
        threads: that PyTorch may use within a job.
        limit: jobs of one stream that may wait.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._limit = limit
        # PyTorch keeps the number of threads for each thread that calls it.
        self._thread = ThreadPoolExecutor(
            1, "compute", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._waiting: dict[Hashable, deque[_Job]] = {}
        self._filled = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to take jobs; within the running event loop."""
        self._runner = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Drops the jobs that wait; one that runs ends by itself."""
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        for jobs in self._waiting.values():
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(unavailable("the encoder is stopping; call again"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, stream: Hashable, work: Callable[[], Result]) -> Result:
        """Runs `work` when it is the stream's turn; jobs of one stream keep their order.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, too many of the stream's jobs wait already.
        """
        jobs = self._waiting.setdefault(stream, deque())
        if len(jobs) >= self._limit:
            raise resource_exhausted(
                f"{len(jobs)} requests of this stream wait for the encoder already; "
                "wait for answers before asking for more",
                limit=f"{self._limit} requests",
                reason="TOO_MANY_PENDING",
            )
        job = _Job(work, asyncio.get_running_loop().create_future())
        jobs.append(job)
        self._filled.set()
        metrics.ENCODER_JOBS_WAITING.inc()
        result: Result = await job.done
        return result

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            job = self._take()
            if job is None:
                self._filled.clear()
                await self._filled.wait()
                continue
            metrics.ENCODER_JOBS_WAITING.dec()
            if job.done.cancelled():
                continue
            try:
                result = await loop.run_in_executor(self._thread, job.work)
            except Exception as failure:
                if not job.done.done():
                    job.done.set_exception(failure)
            else:
                if not job.done.done():
                    job.done.set_result(result)

    def _take(self) -> _Job | None:
        """The next job: the oldest of the stream that waits longest since its last."""
        if not self._waiting:
            return None
        stream = next(iter(self._waiting))
        jobs = self._waiting.pop(stream)
        job = jobs.popleft()
        if jobs:
            self._waiting[stream] = jobs
        return job
