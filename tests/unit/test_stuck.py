"""A computation that does not end makes its service not ready, until it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from minmo.rpc import stuck
from minmo.rpc.health import Readiness
from minmo.rpc.stuck import watch_compute
from services.encoder.compute import ComputeQueue


@pytest.fixture(autouse=True)
def _checks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "_CHECK_SECONDS", 0.01)


@asynccontextmanager
async def watched(queue: ComputeQueue) -> AsyncIterator[Readiness]:
    readiness = Readiness()
    readiness.mark_started()
    task = asyncio.create_task(watch_compute(readiness, lambda: queue.running_seconds, 0.1))
    try:
        yield readiness
    finally:
        task.cancel()


async def until(readiness: Readiness, *, ready: bool) -> None:
    async with asyncio.timeout(5):
        async for now in readiness.changes():
            if now is ready:
                return


async def test_a_job_that_is_stuck_shows_in_health_and_passes() -> None:
    queue, go_on = ComputeQueue(1, 4), threading.Event()
    queue.start()
    async with watched(queue) as readiness:
        job = asyncio.create_task(queue.run("stream", go_on.wait))
        await until(readiness, ready=False)
        assert readiness.reason == "a computation has been running for more than 0.1 s"
        go_on.set()
        assert await job
        await until(readiness, ready=True)
    await queue.stop()


async def test_many_short_jobs_are_not_stuck() -> None:
    queue = ComputeQueue(1, 100)
    queue.start()
    async with watched(queue) as readiness:
        for _ in range(20):
            await queue.run("stream", lambda: threading.Event().wait(0.02))
            assert readiness.ready
    await queue.stop()
