"""A stream of a conversation goes on with another server when the one that has it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from grpc_status import rpc_status

from minmo.rpc import converse
from minmo.rpc.converse import ConverseStream
from minmo.rpc.errors import StatusError, unavailable
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse, Moving
from minmo.v1.conversation_pb2_grpc import (
    ConversationServiceServicer,
    ConversationServiceStub,
    add_ConversationServiceServicer_to_server,
)


@dataclass
class Servers(ConversationServiceServicer):
    """As many servers as streams were opened: each takes messages, until it is told how to end."""

    configs: list[conversation_pb2.ConverseConfig] = field(default_factory=list)
    taken: list[list[ConverseRequest]] = field(default_factory=list)
    ends: list[asyncio.Future[StatusError | Moving]] = field(default_factory=list)
    refusals: int = 0
    events: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """Positions of events that the latest server tells."""
    took: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def Converse(
        self, request_iterator: AsyncIterator[ConverseRequest], context: grpc.aio.ServicerContext
    ) -> None:
        config = (await anext(request_iterator)).config
        if self.refusals and self.configs:
            self.refusals -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no server is ready")
        self.configs.append(config)
        taken: list[ConverseRequest] = []
        end: asyncio.Future[StatusError | Moving] = asyncio.get_running_loop().create_future()
        self.taken.append(taken)
        self.ends.append(end)
        ready = conversation_pb2.ConverseReady(session_id="session")
        await context.write(ConverseResponse(sequence=0, ready=ready))
        reading = asyncio.create_task(self.read(request_iterator, taken))
        telling = asyncio.create_task(self.tell(context))
        status = await end
        for task in (reading, telling):
            task.cancel()
        if isinstance(status, Moving):
            await context.write(ConverseResponse(sequence=1, moving=status))
            await asyncio.Event().wait()
        await context.abort_with_status(rpc_status.to_status(status.to_status()))

    async def read(
        self, requests: AsyncIterator[ConverseRequest], taken: list[ConverseRequest]
    ) -> None:
        async for request in requests:
            async with self.took:
                taken.append(request)
                self.took.notify_all()

    async def tell(self, context: grpc.aio.ServicerContext) -> None:
        sequence = 1
        while True:
            event = conversation_pb2.TurnEvent(audio_ms=await self.events.get())
            await context.write(ConverseResponse(sequence=sequence, event=event))
            sequence += 1

    async def until(self, server: int, count: int) -> list[ConverseRequest]:
        """What a server has taken, once that is so many messages."""
        async with asyncio.timeout(5), self.took:
            await self.took.wait_for(
                lambda: len(self.taken) > server and len(self.taken[server]) >= count
            )
        return self.taken[server]


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    yield Servers()


@asynccontextmanager
async def talking(servers: Servers) -> AsyncIterator[ConverseStream]:
    async with AsyncExitStack() as stack:
        server = grpc.aio.server()
        add_ConversationServiceServicer_to_server(servers, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        config = conversation_pb2.ConverseConfig(
            settings=conversation_pb2.SessionSettings(voice="hers"), reports_playback=True
        )
        stub = ConversationServiceStub(channel)
        yield await ConverseStream.open(stub, config, seconds=5, server="the server")


def moving(audio_from: int, audio_from_ms: int, requests_from: int) -> Moving:
    return Moving(audio_from=audio_from, audio_from_ms=audio_from_ms, requests_from=requests_from)


def audio(word: str) -> ConverseRequest:
    return ConverseRequest(audio=common_pb2.AudioChunk(data=word.encode()))


def text(word: str) -> ConverseRequest:
    return ConverseRequest(text=conversation_pb2.TextInput(text=word))


def said(requests: list[ConverseRequest]) -> str:
    return " ".join(
        request.audio.data.decode() if request.HasField("audio") else request.text.text
        for request in requests
    )


async def test_what_was_not_dealt_with_is_sent_to_the_next_server(servers: Servers) -> None:
    async with talking(servers) as stream:
        reading = asyncio.create_task(stream.read())
        for message in (audio("a0"), text("t0"), audio("a1"), audio("a2"), text("t1"), audio("a3")):
            assert await stream.write(message)
        await servers.until(0, 6)
        servers.ends[0].set_result(moving(2, 1_500, 1))
        taken = await servers.until(1, 3)
        assert await stream.write(audio("a4"))
        await servers.until(1, 4)
        assert said(taken) == "a2 t1 a3 a4"
        assert [request.audio.sequence for request in taken if request.HasField("audio")] == [
            *range(3)
        ]
        # The session that the first server has made, at the position that it knew.
        config = servers.configs[1]
        assert (config.session_id, config.take_over) == ("session", True)
        assert not config.HasField("settings")
        assert config.reports_playback
        servers.events.put_nowait(40)
        response = await asyncio.wait_for(reading, 5)
        assert response is not None
        assert response.event.audio_ms == 1_540


async def test_who_writes_meanwhile_loses_nothing(servers: Servers) -> None:
    async with talking(servers) as stream:
        reading = asyncio.create_task(stream.read())
        await stream.write(audio("0"))
        await servers.until(0, 1)
        servers.refusals = 3
        servers.ends[0].set_result(moving(1, 0, 0))
        number = 1
        async with asyncio.timeout(10):
            while len(servers.taken) < 2 or len(servers.taken[1]) < 20:
                assert await stream.write(audio(str(number)))
                number += 1
                await asyncio.sleep(0.001)
        servers.ends[1].set_result(moving(10, 0, 0))
        taken = await servers.until(2, 10)
        assert said(servers.taken[1][:10]) == " ".join(str(n) for n in range(1, 11))
        assert said(taken[:10]) == " ".join(str(n) for n in range(11, 21))
        reading.cancel()


async def test_a_stream_that_was_cut_in_the_middle_is_lost(servers: Servers) -> None:
    async with talking(servers) as stream:
        servers.ends[0].set_result(unavailable("the server is stopping", reason="DRAINING"))
        with pytest.raises(StatusError, match="is stopping"):
            await asyncio.wait_for(stream.read(), 5)
        assert not await stream.write(audio("too late"))
    assert len(servers.configs) == 1


async def test_no_other_server_means_that_the_stream_is_lost(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converse, "MOVE_SECONDS", 0.3)
    async with talking(servers) as stream:
        servers.refusals = 1000
        servers.ends[0].set_result(moving(0, 0, 0))
        with pytest.raises(StatusError, match="no server is ready"):
            await asyncio.wait_for(stream.read(), 5)
        assert not await stream.write(audio("nobody"))


async def test_what_is_finished_stays_finished(servers: Servers) -> None:
    async with talking(servers) as stream:
        reading = asyncio.create_task(stream.read())
        await stream.write(text("last"))
        await stream.finish()
        await servers.until(0, 1)
        servers.ends[0].set_result(moving(0, 0, 0))
        assert said(await servers.until(1, 1)) == "last"
        reading.cancel()
