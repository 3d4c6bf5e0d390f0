"""The encoder's compute thread is shared fairly, bounded, and does nothing for who has left."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import grpc
import pytest

from minmo.rpc.errors import StatusError
from services.encoder.compute import ComputeQueue


@pytest.fixture
async def queue() -> AsyncIterator[ComputeQueue]:
    made = ComputeQueue(threads=1, limit=4)
    made.start()
    yield made
    await made.stop()


class Gate:
    """Keeps the compute thread busy until it is opened."""

    def __init__(self, queue: ComputeQueue) -> None:
        self._open = threading.Event()
        self._entered = threading.Event()
        self.job = asyncio.ensure_future(queue.run("gate", self._wait))

    def _wait(self) -> None:
        self._entered.set()
        assert self._open.wait(10)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 10)

    async def open(self) -> None:
        self._open.set()
        await self.job


def noting(order: list[str], name: str) -> Callable[[], str]:
    def job() -> str:
        order.append(name)
        return name

    return job


async def test_a_job_gives_its_result(queue: ComputeQueue) -> None:
    assert await queue.run("a", lambda: 42) == 42


async def test_a_job_that_fails_fails_its_caller_only(queue: ComputeQueue) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await queue.run("a", fail)
    assert await queue.run("a", lambda: 1) == 1


async def test_streams_take_turns_however_much_one_of_them_asks_for(queue: ComputeQueue) -> None:
    order: list[str] = []
    gate = Gate(queue)
    await gate.entered()
    jobs = [
        asyncio.ensure_future(queue.run(stream, noting(order, f"{stream}{number}")))
        for stream, count in (("a", 3), ("b", 1), ("c", 2))
        for number in range(count)
    ]
    await asyncio.sleep(0)
    await gate.open()
    await asyncio.gather(*jobs)
    assert order == ["a0", "b0", "c0", "a1", "c1", "a2"]


async def test_a_cancelled_job_is_never_started(queue: ComputeQueue) -> None:
    order: list[str] = []
    gate = Gate(queue)
    await gate.entered()
    left = asyncio.ensure_future(queue.run("a", noting(order, "left")))
    stays = asyncio.ensure_future(queue.run("b", noting(order, "stays")))
    await asyncio.sleep(0)
    left.cancel()
    await gate.open()
    await stays
    assert order == ["stays"]


async def test_a_job_whose_caller_leaves_while_it_runs_does_not_stop_the_others(
    queue: ComputeQueue,
) -> None:
    gate = Gate(queue)
    await gate.entered()
    gate.job.cancel()
    gate._open.set()
    assert await queue.run("b", lambda: "done") == "done"


async def test_one_stream_may_have_a_bounded_number_of_jobs_waiting(queue: ComputeQueue) -> None:
    gate = Gate(queue)
    await gate.entered()
    jobs = [asyncio.ensure_future(queue.run("a", int)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(StatusError, match="4 requests of this stream wait") as raised:
        await queue.run("a", int)
    assert raised.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    other = asyncio.ensure_future(queue.run("b", int))
    await gate.open()
    await asyncio.gather(*jobs, other)


async def test_jobs_that_wait_at_the_end_are_told() -> None:
    queue = ComputeQueue(threads=1, limit=4)
    queue.start()
    gate = Gate(queue)
    await gate.entered()
    waiting = asyncio.ensure_future(queue.run("a", int))
    await asyncio.sleep(0)
    await queue.stop()
    with pytest.raises(StatusError, match="stopping"):
        await waiting
    gate.job.cancel()
    gate._open.set()
