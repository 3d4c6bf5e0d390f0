"""A conversation with a MinMo server that outlives its connections."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from minmo.audio.pcm import AudioError, Samples
from minmo.client.codecs import Codec, Incoming, Outgoing
from minmo.client.commands import Commands
from minmo.client.errors import NotConnectedError
from minmo.client.events import (
    AudioReceived,
    Disconnected,
    Event,
    Ready,
    Reconnected,
    StopPlayback,
    event_of,
)
from minmo.client.speaker import Speaker
from minmo.client.target import Target
from minmo.rpc.converse import ConverseStream
from minmo.rpc.errors import StatusError, error
from minmo.rpc.queues import BoundedStream
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse, SessionSettings
from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

if TYPE_CHECKING:
    from minmo.v1.conversation_pb2_grpc import ConversationServiceAsyncStub

PLAYBACK_SECONDS = 0.1
"""Time between two reports of how far the answer was played."""

_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 2.0
_READY_SECONDS = 30.0
_WAITING_EVENTS = 4096
_EVENT_SECONDS = 30.0
# Times of 20 ms frames of half an hour.
_KEPT_TIMES = 90_000


class Conversation(Commands):
    """Talks in one session, over as many connections as it takes::

        async with Conversation(target, input_rate_hz=16_000) as conversation:
            await conversation.send_audio(samples)
            async for event in conversation: ...

    It plays what comes on a virtual loudspeaker, reports every 100 ms how far, and stops when the
    server says so. When the server is lost (UNAVAILABLE) it looks for it, with growing pauses, and
    goes on in the same session; audio is dropped meanwhile, as it would be stale, and requests are
    refused. `minmo.client.sync.Conversation` is the same without ``async``.

    Use it on one event loop. The events must be read: if thousands wait, the conversation ends.

    Args:
        target: the server.
        input_rate_hz: rate of the audio to send; one of `minmo.audio.pcm.SAMPLE_RATES_HZ`, for
            Opus of `OPUS_RATES_HZ`.
        output_rate_hz: rate of the audio to receive.
        codec: how audio travels, both ways.
        session_id: the session to talk in; empty makes one.
        settings: how a session made here should behave.
        take_over: takes the session from a stream that still holds it.
        reconnect_seconds: longest time without the server, once it was there.
        speed: how much faster than real time the loudspeaker plays.

    Raises:
        AudioError: on creation, a rate is not supported.
    """

    def __init__(
        self,
        target: Target,
        *,
        input_rate_hz: int,
        output_rate_hz: int = 24_000,
        codec: Codec = "pcm",
        session_id: str = "",
        settings: SessionSettings | None = None,
        take_over: bool = False,
        reconnect_seconds: float = 30.0,
        speed: float = 1.0,
    ) -> None:
        super().__init__()
        self.session_id = session_id
        self.mode = ""
        self.input_rate_hz = input_rate_hz
        self.output_rate_hz = output_rate_hz
        self.speaker = Speaker(output_rate_hz, speed)
        self.dropped_samples = 0
        """Samples that were to be sent while there was no server."""
        self._target = target
        self._outgoing = Outgoing(codec, input_rate_hz)
        self._incoming = Incoming(codec, output_rate_hz)
        self._settings = settings
        self._take_over = take_over
        self._reconnect_seconds = reconnect_seconds
        self._events: BoundedStream[Event] = BoundedStream(
            _WAITING_EVENTS, put_timeout_seconds=_EVENT_SECONDS, reader="who talks"
        )
        self._channel: grpc.aio.Channel | None = None
        self._stream: ConverseStream | None = None
        self._finished = False
        self._tasks: list[asyncio.Task[None]] = []
        self._sent: list[int] = []
        self._sent_at: list[float] = []

    async def __aenter__(self) -> Self:
        """Connects. Raises StatusError: the server is not there or refuses."""
        self._channel = self._target.channel()
        try:
            ready = await self._connect()
        except BaseException:
            await self._channel.close()
            raise
        await self._events.put(ready)
        self._tasks = [
            asyncio.create_task(self._receive(), name="receive"),
            asyncio.create_task(self._report_playback(), name="report playback"),
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._stream is not None:
            self._stream.close()
        if self._channel is not None:
            await self._channel.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        """The events. The iteration ends after `finish`, or raises StatusError."""
        return self._events

    async def receive(self, timeout_seconds: float | None = None) -> Event | None:
        """The next event; None after the last.

        Args:
            timeout_seconds: longest wait; None waits as long as the server is there.

        Raises:
            TimeoutError: nothing happened in that time.
            StatusError: the conversation was ended by the server.
        """
        async with asyncio.timeout(timeout_seconds):
            return await anext(self._events, None)

    @property
    def events(self) -> AsyncIterator[Event]:
        """The events, for ``anext``; waiting for one may be cut short without losing any."""
        return self._events

    @property
    def position_ms(self) -> float:
        """Audio that was sent in the present stream, in milliseconds."""
        return self._sent[-1] * 1000 / self.input_rate_hz if self._sent else 0.0

    @property
    def connected(self) -> bool:
        """Whether there is a stream to the server now."""
        return self._stream is not None

    async def send_audio(self, samples: Samples) -> None:
        """Sends audio of the microphone; drops it while there is no server.

        Args:
            samples: float32 [samples], one channel.
        """
        if not self.connected:
            self.dropped_samples += len(samples)
            return
        await self._send_chunks(self._outgoing.encode(samples))

    async def finish(self) -> None:
        """Says that no more comes: the open turn is answered, then the events end."""
        if self.connected:
            await self._send_chunks(self._outgoing.rest())
        self._finished = True
        if self._stream is not None:
            await self._stream.finish()

    def sent_at(self, position_ms: float) -> float | None:
        """When the audio up to a position of this stream was sent, on the monotonic clock.

        None if that was not sent, or is too long ago.
        """
        index = bisect_left(self._sent, position_ms * self.input_rate_hz / 1000)
        return self._sent_at[index] if index < len(self._sent) else None

    async def _connect(self) -> Ready:
        """Opens a stream and waits for its session. Raises StatusError."""
        assert self._channel is not None, "connects inside `async with` only"
        stub: ConversationServiceAsyncStub = ConversationServiceStub(self._channel)
        config = conversation_pb2.ConverseConfig(
            session_id=self.session_id,
            settings=None if self.session_id else self._settings,
            input_format=self._outgoing.audio_format,
            output_format=self._incoming.audio_format,
            reports_playback=True,
            take_over=self._take_over,
        )
        stream = await ConverseStream.open(
            stub, config, seconds=_READY_SECONDS, server=f"the server at {self._target.address}"
        )
        ready = event_of(stream.ready, self._incoming, time.monotonic())
        assert isinstance(ready, Ready), "a stream begins with it"
        self.session_id, self.mode = ready.session_id, ready.mode
        self._outgoing.restart()
        self._sent.clear()
        self._sent_at.clear()
        self._stream = stream
        if self._finished:
            await stream.finish()
        return ready

    async def _receive(self) -> None:
        try:
            while True:
                lost = await self._read_stream()
                if lost is None:
                    self._events.close()
                    return
                await self._reconnect(lost)
        except Exception as failure:
            self._events.fail(failure)

    async def _read_stream(self) -> StatusError | None:
        """Reads the stream to its end; returns why it must be opened again, None if not."""
        stream = self._stream
        assert stream is not None, "reads a stream that was opened"
        try:
            while (response := await stream.read()) is not None:
                await self._take(response)
            return None
        except StatusError as status:
            if status.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            return status
        finally:
            self._stream = None

    async def _take(self, response: ConverseResponse) -> None:
        now = time.monotonic()
        try:
            event = event_of(response, self._incoming, now)
        except AudioError as bad:
            raise error(
                grpc.StatusCode.DATA_LOSS, "BAD_AUDIO", f"the server's audio cannot be read: {bad}"
            ) from None
        if event is None:
            return
        if isinstance(event, AudioReceived):
            self.speaker.receive(
                event.utterance_id,
                event.first_sample,
                event.samples,
                final=event.final,
                now_seconds=now,
            )
        elif isinstance(event, StopPlayback):
            self.speaker.stop(event.utterance_id, now)
            await self._send_playback()
        await self._events.put(event)

    async def _reconnect(self, lost: StatusError) -> None:
        """Finds the server again. Raises StatusError after the deadline, or if it refuses."""
        await self._events.put(Disconnected(lost.message))
        self._take_over = True
        began = time.monotonic()
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)
            try:
                ready = await self._connect()
            except StatusError as failure:
                waited = time.monotonic() - began
                if failure.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                if waited > self._reconnect_seconds:
                    raise StatusError(
                        failure.code,
                        f"the server at {self._target.address} did not come back within "
                        f"{self._reconnect_seconds:g} s: {failure.message}",
                        failure.details,
                    ) from None
                continue
            await self._events.put(Reconnected(time.monotonic() - began, ready))
            return

    async def _report_playback(self) -> None:
        while True:
            await asyncio.sleep(PLAYBACK_SECONDS)
            await self._send_playback()

    async def _send_playback(self) -> None:
        for playback in self.speaker.news(time.monotonic()):
            message = conversation_pb2.Playback(
                utterance_id=playback.utterance_id,
                played_samples=playback.played_samples,
                finished=playback.finished,
            )
            await self._write(ConverseRequest(playback=message))

    async def _send_chunks(self, chunks: list[tuple[bytes, int]]) -> None:
        stream = self._stream
        for data, frames in chunks:
            if self._stream is not stream:
                # Packets of a stream that was lost mean nothing in the next.
                self.dropped_samples += frames
                continue
            self._sent.append((self._sent[-1] if self._sent else 0) + frames)
            self._sent_at.append(time.monotonic())
            del self._sent[:-_KEPT_TIMES], self._sent_at[:-_KEPT_TIMES]
            chunk = common_pb2.AudioChunk(data=data)
            if not await self._write(ConverseRequest(audio=chunk)):
                self.dropped_samples += frames

    async def _send(self, request: ConverseRequest) -> None:
        if not await self._write(request):
            what = "the conversation was finished" if self._finished else "it is being looked for"
            raise NotConnectedError(
                f"no connection to the server at {self._target.address} ({what}): "
                f"`{request.WhichOneof('message')}` was not sent"
            )

    async def _write(self, request: ConverseRequest) -> bool:
        """Sends a message; False if there is no server to take it."""
        stream = self._stream
        if stream is None or (self._finished and not request.HasField("playback")):
            return False
        # gRPC cancels the whole call when a write is cancelled; who stops sending means no such
        # thing.
        return await asyncio.shield(asyncio.create_task(stream.write(request)))
