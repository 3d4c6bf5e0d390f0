"""Events of a client: read, paced, translated, and acted on."""

from __future__ import annotations

import asyncio
import time

import grpc
from aiohttp import WSCloseCode, WSMsgType, web

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError
from minmo.settings import GatewaySettings
from minmo.v1 import common_pb2, conversation_pb2
from services.gateway import parsing
from services.gateway.audio_input import pcm_of, seconds_of
from services.gateway.codecs import INPUT_RATES_HZ
from services.gateway.ending import ConnectionEnd
from services.gateway.errors import INVALID_REQUEST, SERVER_ERROR, EventError
from services.gateway.exchange import Exchange
from services.gateway.from_client import FromClient
from services.gateway.limits import TokenBucket
from services.gateway.outbox import Outbox
from services.gateway.pings import Pings
from services.gateway.state import Outcome, Recording, State
from services.gateway.upstream import Upstream

_PENDING_LIMIT = 32
_BACKLOG_SECONDS = 10.0
"""Audio that may come faster than real time before it is slowed down."""
_INPUT_SPEED = 8.0
_ERROR_EVERY_SECONDS = 1.0


class Inbox:
    """What a client sends.

    Args:
        settings: of the gateway.
        socket: open.
        state: of the connection.
        exchange: with the orchestrator.
        upstream: of the exchange, for calls beside the stream.
        outbox: to the client.
        audio_quota: seconds of audio that the caller may send.
        pings: of the connection.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        socket: web.WebSocketResponse,
        state: State,
        exchange: Exchange,
        upstream: Upstream,
        outbox: Outbox,
        audio_quota: TokenBucket,
        pings: Pings,
    ) -> None:
        self._settings = settings
        self._socket = socket
        self._state = state
        self._exchange = exchange
        self._upstream = upstream
        self._outbox = outbox
        self._quota = audio_quota
        self._pings = pings
        self._from_client = FromClient(state)
        now = time.monotonic()
        self.heard_from = now
        """When the client last sent an event."""
        self._messages = TokenBucket(
            settings.max_messages_per_second, settings.max_messages_per_second, now
        )
        self._speed = TokenBucket(_INPUT_SPEED, _BACKLOG_SECONDS, now)
        self._flooded_since: float | None = None
        self._error_at = self._quota_error_at = now - _ERROR_EVERY_SECONDS

    async def run(self) -> None:
        """Reads to the end, which is a `ConnectionEnd`."""
        async for message in self._socket:
            now = time.monotonic()
            if message.type is WSMsgType.PONG:
                self._pings.answered(message.data, now)
                continue
            if message.type is WSMsgType.PING:
                await self._socket.pong(message.data)
                await self._pace(now)
                continue
            self.heard_from = now
            if message.type is WSMsgType.TEXT:
                await self._hear(message.data, now)
            elif message.type is WSMsgType.BINARY:
                self._outbox.fail(EventError("invalid_json", "Events are text, not binary frames."))
            elif message.type is WSMsgType.ERROR:
                raise ConnectionEnd("message too big", WSCloseCode.MESSAGE_TOO_BIG)
            await self._pace(time.monotonic())
        raise ConnectionEnd("client gone")

    async def _hear(self, text: str, now: float) -> None:
        event_id: str | None = None
        # No more is read of who does not read, or while much that was asked for is not answered.
        await self._outbox.wait_room()
        await self._exchange.wait_pending_below(_PENDING_LIMIT)
        try:
            if len(text) > self._settings.max_message_bytes:
                raise EventError(
                    "event_too_large",
                    f"The event has {len(text)} bytes: at most "
                    f"{self._settings.max_message_bytes} are taken.",
                )
            event = parsing.parse(text)
            event_id = event.event_id
            metrics.EVENTS_IN.labels(event.type).inc()
            outcome = self._from_client.translate(event)
            self._exchange.want()
            await self._act(outcome, now)
        except EventError as error:
            self._outbox.fail(error, event_id)

    async def _act(self, outcome: Outcome, now: float) -> None:
        self._outbox.emit(outcome.events)
        if outcome.reopen:
            await self._exchange.reopen(len(outcome.requests))
        for request in outcome.requests:
            if not request.HasField("audio") or await self._may_send(request.audio):
                await self._exchange.ask(request, now)
        if outcome.recording is not None:
            await self._recognise(outcome.recording, now)

    async def _may_send(self, audio: common_pb2.AudioChunk) -> bool:
        """Counts audio; waits where it comes much faster than it was spoken."""
        seconds = seconds_of(self._state, audio)
        now = time.monotonic()
        if not self._quota.take(seconds, now):
            metrics.count_lost_input("over_quota", seconds)
            if now - self._quota_error_at >= _ERROR_EVERY_SECONDS:
                self._quota_error_at = now
                self._outbox.fail(
                    EventError(
                        "rate_limit_exceeded",
                        f"More audio than {self._settings.audio_seconds_per_hour} s an hour: it "
                        "is not heard.",
                        kind="rate_limit_error",
                    )
                )
            return False
        metrics.AUDIO.labels("in").inc(seconds)
        wait = self._speed.owe(seconds, now)
        if wait > 0:
            await asyncio.sleep(wait)
        return True

    async def _recognise(self, recording: Recording, now: float) -> None:
        pcm = await asyncio.to_thread(pcm_of, recording)
        request = conversation_pb2.TranscribeRequest(
            format=common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE,
                sample_rate_hz=INPUT_RATES_HZ[recording.audio_format],
                channels=1,
            ),
            audio=pcm,
        )
        try:
            text = await self._upstream.transcribe(
                request, self._settings.transcribe_deadline_seconds
            )
        except StatusError as failure:
            raise EventError(
                "transcription_failed",
                f"The item's audio could not be recognised: {failure.message}",
                event_id=recording.event_id,
                kind=INVALID_REQUEST
                if failure.code is grpc.StatusCode.INVALID_ARGUMENT
                else SERVER_ERROR,
            ) from None
        await self._act(self._from_client.recognised(recording, text), now)

    async def _pace(self, now: float) -> None:
        """Slows a client down that sends too many events, and cuts off one that goes on."""
        wait = self._messages.owe(1, now)
        if wait <= 0:
            # Who is only held back stays near the limit.
            if self._messages.left(now) > self._settings.max_messages_per_second / 2:
                self._flooded_since = None
            return
        if self._flooded_since is None:
            self._flooded_since = now
        if now - self._error_at >= _ERROR_EVERY_SECONDS:
            self._error_at = now
            self._outbox.fail(
                EventError(
                    "rate_limit_exceeded",
                    f"More than {self._settings.max_messages_per_second} events a second: they "
                    "are read more slowly.",
                    kind="rate_limit_error",
                )
            )
        if now - self._flooded_since > self._settings.flood_seconds:
            raise ConnectionEnd("flood", WSCloseCode.POLICY_VIOLATION)
        await asyncio.sleep(wait)
