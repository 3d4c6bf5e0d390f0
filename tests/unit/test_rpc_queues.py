import asyncio

import grpc
import pytest

from minmo.rpc.errors import StatusError
from minmo.rpc.queues import BoundedStream, StreamClosedError


async def test_what_is_put_comes_out_in_order_and_the_iteration_ends() -> None:
    stream: BoundedStream[int] = BoundedStream(2)

    async def produce() -> None:
        for number in range(10):
            await stream.put(number)
        stream.close()

    producer = asyncio.create_task(produce())
    assert [number async for number in stream] == list(range(10))
    await producer
    assert stream.closed


async def test_a_reader_that_does_not_read_is_named_with_the_limit() -> None:
    stream: BoundedStream[int] = BoundedStream(2)
    await stream.put(1)
    await stream.put(2)
    with pytest.raises(StatusError) as error:
        await stream.put(3, timeout_seconds=0.02)
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.value.message == "client does not read: 2 messages waited for 0.02 s"
    assert error.value.reason == "READER_TOO_SLOW"
    assert error.value.metadata["limit"] == "2 messages, 0.02 s"


async def test_a_put_goes_on_as_soon_as_there_is_room() -> None:
    stream: BoundedStream[int] = BoundedStream(1, put_timeout_seconds=5)
    await stream.put(1)
    waiting = asyncio.create_task(stream.put(2))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await anext(stream) == 1
    await waiting
    assert await anext(stream) == 2


async def test_put_nowait_says_whether_there_was_room() -> None:
    stream: BoundedStream[int] = BoundedStream(1)
    assert stream.put_nowait(1)
    assert not stream.put_nowait(2)
    assert len(stream) == 1


async def test_clear_drops_what_nobody_will_hear_and_makes_room() -> None:
    stream: BoundedStream[int] = BoundedStream(2)
    await stream.put(1)
    await stream.put(2)
    waiting = asyncio.create_task(stream.put(3))
    await asyncio.sleep(0)
    assert stream.clear() == 2
    await waiting
    assert await anext(stream) == 3


async def test_a_failure_reaches_the_reader_at_once_and_stops_the_writer() -> None:
    stream: BoundedStream[int] = BoundedStream(1)
    await stream.put(1)
    waiting = asyncio.create_task(stream.put(2))
    await asyncio.sleep(0)
    failure = ValueError("broken")
    stream.fail(failure)
    with pytest.raises(ValueError, match="broken"):
        await anext(stream)
    with pytest.raises(StreamClosedError) as closed:
        await waiting
    assert closed.value.__cause__ is failure


async def test_a_waiting_reader_ends_when_the_stream_closes() -> None:
    stream: BoundedStream[int] = BoundedStream(1)
    reader = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    stream.close()
    stream.close()
    assert await reader is None
    with pytest.raises(StreamClosedError):
        stream.put_nowait(1)


def test_a_stream_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        BoundedStream[int](0)
