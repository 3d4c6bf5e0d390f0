"""The one thread that computes, shared fairly by all streams."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from minmo.rpc import metrics, tracing
from minmo.rpc.errors import resource_exhausted, unavailable

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    done: asyncio.Future[Any]
    kind: metrics.Job | None
    since: float
    span: tracing.Span


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
        self._began: float | None = None

    @property
    def running_seconds(self) -> float:
        """How long the job has been running that runs now; 0 if none does."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def start(self) -> None:
        """Begins to take jobs; within the running event loop."""
        self._runner = asyncio.create_task(self._run())
        metrics.ENCODER_SLOTS.set(1)

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

    async def run(
        self, stream: Hashable, work: Callable[[], Result], kind: metrics.Job | None = None
    ) -> Result:
        """Runs `work` when it is the stream's turn; jobs of one stream keep their order.

        Args:
            stream: whose turn it takes.
            work: what is to be computed.
            kind: what it is called in the metrics; None leaves it out of them.

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
        done = asyncio.get_running_loop().create_future()
        job = _Job(work, done, kind, time.monotonic(), tracing.current())
        jobs.append(job)
        self._filled.set()
        metrics.ENCODER_WAITING.inc()
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
            metrics.ENCODER_WAITING.dec()
            if job.done.cancelled():
                continue
            self._began = time.monotonic()
            try:
                with _measured(job):
                    result = await loop.run_in_executor(self._thread, job.work)
            except Exception as failure:
                if not job.done.done():
                    job.done.set_exception(failure)
            else:
                if not job.done.done():
                    job.done.set_result(result)
            finally:
                self._began = None

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


@contextlib.contextmanager
def _measured(job: _Job) -> Iterator[None]:
    """Records how long a job waited for its turn, and how long it takes."""
    began = time.monotonic()
    metrics.ENCODER_SLOTS_IN_USE.inc()
    try:
        yield
    finally:
        metrics.ENCODER_SLOTS_IN_USE.dec()
        if job.kind is not None:
            seconds = time.monotonic() - began
            if job.kind == "recognise":  # steps of a segment are many
                tracing.begin("wait", parent=job.span, began=job.since).end(began)
                tracing.begin("compute", parent=job.span, began=began).end()
            metrics.ENCODER_JOB_WAIT.labels(job.kind).observe(began - job.since)
            metrics.ENCODER_JOB.labels(job.kind).observe(seconds)
            metrics.ENCODER_COMPUTE.inc(seconds)
