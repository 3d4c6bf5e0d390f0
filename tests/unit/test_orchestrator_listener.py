"""What a conversation hears does not depend on which encoder listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status

from minmo.rpc.errors import unavailable
from minmo.v1 import common_pb2, encoder_pb2
from minmo.v1.encoder_pb2_grpc import EncoderServiceServicer, add_EncoderServiceServicer_to_server
from services.orchestrator import listener as module
from services.orchestrator import retry
from services.orchestrator.listener import (
    Embeddings,
    Failed,
    Found,
    Heard,
    Listener,
    Lost,
    Probe,
)

RATE = 16_000
FORMAT = common_pb2.AudioFormat(
    encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE, sample_rate_hz=RATE, channels=1
)


class FakeEncoder(EncoderServiceServicer):
    """Hears a piece in each 1000 samples of a segment: row and word are its position in 1000s."""

    def __init__(self) -> None:
        self.dies_at = 0
        self.starts: list[int] = []
        self.refuses = False
        self.leaves_at = 0
        self.configs: list[encoder_pb2.EncodeConfig] = []
        self.away = 0
        """How many times it cannot be had after it has died."""

    async def Encode(
        self,
        request_iterator: AsyncIterator[encoder_pb2.EncodeRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[encoder_pb2.EncodeResponse]:
        position, start, given, probed = 0, None, 0, None
        async for request in request_iterator:
            final = False
            match request.WhichOneof("message"):
                case "config":
                    position = request.config.start_sample
                    if self.configs and self.away:
                        self.away -= 1
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "nobody is there")
                    self.configs.append(request.config)
                    yield encoder_pb2.EncodeResponse(ready=encoder_pb2.EncodeReady())
                    continue
                case "audio":
                    position += len(request.audio.data) // 2
                    activity = encoder_pb2.VoiceActivity(end_sample=position)
                    yield encoder_pb2.EncodeResponse(activity=activity)
                    if self.leaves_at and position >= self.leaves_at:
                        self.leaves_at = 0
                        status = unavailable("the encoder stops", reason="DRAINING").to_status()
                        await context.abort_with_status(rpc_status.to_status(status))
                case "start_embedding":
                    if self.refuses:
                        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not trained")
                    start, given = request.start_embedding.start_sample, 0
                    probed = 0 if request.start_embedding.probes else None
                    self.starts.append(start)
                case "end_embedding":
                    final = True
            if start is None:
                continue
            words = [str(n) for n in range(start // 1000, position // 1000)]
            new, given = words[given:], len(words)
            yield encoder_pb2.EncodeResponse(
                embeddings=encoder_pb2.SegmentEmbeddings(
                    segment_id=1,
                    first_index=given - len(new),
                    embeddings=common_pb2.FloatMatrix(
                        data=np.array(new, "<f4").tobytes(), rows=len(new), columns=1
                    ),
                    end_sample=position // 1000 * 1000,
                    final=final,
                    pieces=[int(word) for word in new],
                    text=" ".join(words),
                )
            )
            while probed is not None and (probed + 1) * 1000 <= position - start:
                probed += 1
                yield encoder_pb2.EncodeResponse(
                    probe=encoder_pb2.SegmentProbe(
                        segment_id=1,
                        step=probed - 1,
                        end_sample=start + probed * 1000,
                        embedding=common_pb2.FloatMatrix(data=bytes(4), rows=1, columns=1),
                    )
                )
            if self.dies_at and position >= self.dies_at:
                self.dies_at = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the encoder died")


class Conversation:
    """A listener, and what it has told."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.heard: list[Heard] = []
        self.news = asyncio.Event()
        self.listener = Listener(channel, FORMAT, self.on_heard, deadline_seconds=5, session="s")

    async def on_heard(self, event: Heard) -> None:
        self.heard.append(event)
        self.news.set()

    @property
    def embeddings(self) -> list[Embeddings]:
        return [event for event in self.heard if isinstance(event, Embeddings)]

    @property
    def rows(self) -> list[float]:
        data = b"".join(part.matrix.data for part in self.embeddings)
        return np.frombuffer(data, "<f4").tolist()

    async def speak(self, chunks: int) -> None:
        for _ in range(chunks):
            await self.listener.feed(bytes(2 * 500))

    async def until(self, kind: type) -> None:
        async with asyncio.timeout(10):
            while not any(isinstance(event, kind) for event in self.heard):
                self.news.clear()
                await self.news.wait()

    async def until_final(self) -> None:
        async with asyncio.timeout(10):
            while not (self.embeddings and self.embeddings[-1].final):
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def talking(encoder: FakeEncoder) -> AsyncIterator[Conversation]:
    server = grpc.aio.server()
    add_EncoderServiceServicer_to_server(encoder, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        conversation = Conversation(channel)
        running = asyncio.create_task(conversation.listener.run())
        yield conversation
        running.cancel()
    await server.stop(None)


async def test_words_and_embeddings_come_as_they_are_heard() -> None:
    async with talking(FakeEncoder()) as conversation:
        await conversation.speak(4)
        await conversation.listener.start_segment(0)
        await conversation.speak(5)
        await conversation.listener.end_segment(4500)
        await conversation.until_final()
    assert conversation.rows == [0, 1, 2, 3]
    assert conversation.embeddings[-1].text == "0 1 2 3"
    # What holds no further piece is told too.
    ends = [part.end for part in conversation.embeddings]
    assert len(ends) > len(set(ends))
    assert sorted(ends) == ends


async def test_an_encoder_that_stops_is_replaced_and_nobody_is_told() -> None:
    encoder = FakeEncoder()
    encoder.leaves_at = 3000
    async with talking(encoder) as conversation:
        await conversation.speak(6)
        await conversation.listener.catch_up()
        await conversation.listener.start_segment(1000)
        await conversation.speak(4)
        await conversation.listener.end_segment(5000)
        await conversation.until_final()
    assert len(encoder.configs) == 2
    assert conversation.rows == [1, 2, 3, 4]
    assert not any(isinstance(event, Lost | Found | Failed) for event in conversation.heard)


async def test_what_was_answered_is_not_sent_to_the_next_encoder() -> None:
    encoder = FakeEncoder()
    async with talking(encoder) as conversation:
        await conversation.speak(80)
        await conversation.listener.catch_up()
        conversation.listener.need_from(36_000)
        encoder.leaves_at = 1
        await conversation.speak(1)
        await conversation.listener.catch_up()
        await conversation.speak(1)
        await conversation.listener.catch_up()
    # A second before what is needed: speech is noticed later than it begins.
    assert encoder.configs[-1].start_sample == 20_000


async def test_a_lost_encoder_is_replaced_and_nothing_is_heard_twice_or_lost() -> None:
    encoder = FakeEncoder()
    encoder.dies_at = 5000
    async with talking(encoder) as conversation:
        await conversation.speak(2)
        await conversation.listener.start_segment(0)
        await conversation.speak(12)
        await conversation.listener.end_segment(7000)
        await conversation.until_final()
    assert encoder.starts == [0, 0]
    # Another one was there at once.
    assert not any(isinstance(event, Lost | Found) for event in conversation.heard)
    assert conversation.rows == [0, 1, 2, 3, 4, 5, 6]
    texts = [part.text for part in conversation.embeddings]
    assert texts[-1] == "0 1 2 3 4 5 6"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


async def test_an_encoder_that_is_away_for_a_while_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "QUIET_SECONDS", 0)
    encoder = FakeEncoder()
    encoder.dies_at, encoder.away = 1000, 2
    async with talking(encoder) as conversation:
        await conversation.listener.start_segment(0)
        await conversation.speak(4)
        await conversation.until(Found)
        await conversation.listener.end_segment(2000)
        await conversation.until_final()
    told = [type(event) for event in conversation.heard if isinstance(event, Lost | Found)]
    assert told == [Lost, Found]
    assert conversation.rows == [0, 1]


async def test_a_long_segment_goes_on_where_the_audio_that_is_kept_begins() -> None:
    encoder = FakeEncoder()
    encoder.dies_at = 20_000
    before, module.KEEP_SECONDS = module.KEEP_SECONDS, 0.5
    try:
        async with talking(encoder) as conversation:
            await conversation.speak(2)
            await conversation.listener.start_segment(0)
            await conversation.until(Embeddings)
            await conversation.speak(38)
            await conversation.listener.catch_up()
            await conversation.listener.end_segment(20_000)
            await conversation.until_final()
    finally:
        module.KEEP_SECONDS = before
    # Its first eight thousand samples are gone; they had been heard.
    assert encoder.starts[0] == 0
    assert encoder.starts[1] >= 11_000
    assert conversation.rows == list(range(20))
    assert conversation.embeddings[-1].text == " ".join(str(n) for n in range(20))


async def test_an_encoder_that_makes_no_embeddings_ends_the_conversation() -> None:
    encoder = FakeEncoder()
    encoder.refuses = True
    async with talking(encoder) as conversation:
        await conversation.speak(2)
        await conversation.listener.start_segment(0)
        await conversation.until(Failed)
    failed = conversation.heard[-1]
    assert isinstance(failed, Failed)
    assert "not trained" in str(failed.error)


async def test_steps_are_probed_where_it_is_asked_for_and_none_twice() -> None:
    encoder = FakeEncoder()
    encoder.dies_at = 5000
    async with talking(encoder) as talk:
        await talk.speak(2)
        await talk.listener.start_segment(0, probes=True)
        await talk.speak(18)
        await talk.listener.catch_up()
        await talk.listener.end_segment(10_000)
        await talk.until_final()
    probes = [event for event in talk.heard if isinstance(event, Probe)]
    ends = [probe.end for probe in probes]
    assert ends == sorted(set(ends))
    # The fake says what it has heard before it is told that the segment ends.
    assert ends[-1] >= 9000
    assert {probe.segment_id for probe in probes} == {1}
    assert len(encoder.configs) == 2


async def test_nobody_is_probed_who_did_not_ask() -> None:
    async with talking(FakeEncoder()) as talk:
        await talk.speak(2)
        await talk.listener.start_segment(0)
        await talk.speak(8)
        await talk.listener.end_segment(5000)
        await talk.until_final()
    assert not any(isinstance(event, Probe) for event in talk.heard)
