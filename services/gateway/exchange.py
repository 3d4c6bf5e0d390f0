"""A connection's conversation with the orchestrator: one stream, and another if that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

import grpc
import structlog
from aiohttp import WSCloseCode

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError
from minmo.rpc.queues import BoundedStream
from minmo.settings import GatewaySettings
from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse
from services.gateway.audio_input import seconds_of
from services.gateway.ending import ConnectionEnd
from services.gateway.errors import EventError
from services.gateway.from_server import FromServer
from services.gateway.outbox import Outbox
from services.gateway.playout import Playout
from services.gateway.session import SessionConfig
from services.gateway.state import State
from services.gateway.traces import Traces
from services.gateway.upstream import Upstream

log = structlog.get_logger()

SETTLE_SECONDS = 0.2
"""Time that a client has to change settings before the session is opened without."""
_REQUESTS_LIMIT = 256
_ASKED_LIMIT = 256
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 2.0
_HELD_LIMIT_SECONDS = 600.0

_NO_VOICE = "VOICE_NOT_FOUND"
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN})


class Exchange:
    """Sends requests, and translates what comes.

    `converse` and `send` run side by side.

    Args:
        settings: of the gateway.
        state: of the connection.
        upstream: nothing is open.
        outbox: to the client.
        session_id: the session to go on with; empty makes one.
        on_news: called when the orchestrator has said something.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        state: State,
        upstream: Upstream,
        outbox: Outbox,
        session_id: str,
        on_news: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._upstream = upstream
        self._outbox = outbox
        self._session_id = session_id
        self._on_news = on_news
        self._from_server = FromServer(state)
        self._requests: BoundedStream[tuple[ConverseRequest, float]] = BoundedStream(
            _REQUESTS_LIMIT,
            put_timeout_seconds=settings.reconnect_seconds,
            reader="the orchestrator",
        )
        self._told = state.config
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        self._reopen = False
        self._lost = False
        self._found_at = 0.0
        self._sent_seconds = 0.0
        self._asked: dict[str, float] = {}
        self._traces = Traces()

    def close(self) -> None:
        """Ends the stream, and all that goes on over it."""
        self._traces.end(time.monotonic())
        self._upstream.close()

    # --- what the client wants

    def restore(self, config: SessionConfig) -> None:
        """The session to go on with has these settings; it is opened at once."""
        self._state.config = self._state.wanted = self._told = config
        self.want()

    def want(self) -> None:
        """The session is to be opened now: the client has sent something."""
        self._wanted.set()

    async def ask(self, request: ConverseRequest, since: float) -> None:
        """Sends a request, in order; waits while many wait. Audio that is stale then is dropped.

        Args:
            request: of the client.
            since: when its event was read.
        """
        if request.HasField("audio"):
            self._sent_seconds += seconds_of(self._state, request.audio)
        await self._requests.put((request, since))

    async def reopen(self, pending: int) -> None:
        """Audio formats have changed, which a stream cannot; first what was asked is answered.

        Args:
            pending: requests that are yet to be sent.
        """
        await self.wait_pending_below(pending + 1)
        self._reopen = True
        self._upstream.close()

    async def wait_pending_below(self, count: int) -> None:
        """Waits, but not for ever, while so many requests wait for their answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.connect_deadline_seconds):
                while len(self._state.pending) >= count:
                    self._answered.clear()
                    await self._answered.wait()

    # --- the stream

    async def converse(self) -> None:
        """Opens the stream, reads it, and opens another if it is lost."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._wanted.wait()
        await self._open()
        while True:
            try:
                while (response := await self._upstream.read()) is not None:
                    self._take(response, time.monotonic())
            except StatusError as failure:
                if self._reopen:
                    await self._open()
                    continue
                metrics.count_hop_error("orchestrator", failure.code)
                if failure.code not in _LOST:
                    raise
                log.info("the orchestrator is lost", error=str(failure))
                await self._reconnect(failure)
                continue
            raise ConnectionEnd("server ended", WSCloseCode.GOING_AWAY)

    async def _open(self) -> None:
        state = self._state
        self._reopen = False
        state.offset_ms = int(self._sent_seconds * 1000)
        try:
            response = await self._begin()
        except StatusError as failure:
            if failure.reason != _NO_VOICE or self._session_id:
                raise
            self._take_default_voice(failure)
            response = await self._begin()
        self._session_id = response.ready.session_id
        structlog.contextvars.bind_contextvars(session=self._session_id)
        self._take(response, time.monotonic())
        settings = state.wanted.to_proto()
        if settings != self._told.to_proto():
            # They have changed while the stream was opened, or before it was.
            self._told = state.wanted
            update = conversation_pb2.UpdateSettings(settings=settings)
            self._ask_soon(ConverseRequest(update_settings=update), time.monotonic())

    async def _begin(self) -> ConverseResponse:
        """Opens a stream in the session, or in one that is made; returns its first message."""
        state = self._state
        input_format, output_format = state.wanted.audio_formats()
        config = conversation_pb2.ConverseConfig(
            session_id=self._session_id,
            settings=None if self._session_id else state.config.to_proto(),
            input_format=input_format,
            output_format=output_format,
            reports_playback=True,
            take_over=bool(self._session_id),
        )
        if not self._session_id:
            self._told = state.config
        with metrics.timed(metrics.HOP_ORCHESTRATOR.labels("open")):
            response = await self._upstream.open(config)
        state.playout = Playout(output_format.sample_rate_hz, self._settings.max_lead_seconds)
        return response

    def _take_default_voice(self, failure: StatusError) -> None:
        """The client chose a voice that does not exist before there was anybody to ask."""
        state = self._state
        param = "session.audio.output.voice"
        self._outbox.fail(EventError("invalid_value", failure.message, param=param))
        state.config = replace(state.config, voice="")
        state.wanted = replace(state.wanted, voice="")
        self._outbox.emit([state.session_event("session.updated")])

    async def _reconnect(self, failure: StatusError) -> None:
        """Finds the orchestrator again. Raises StatusError after the deadline, or if it refuses."""
        self._upstream.close()
        self._lost = True
        metrics.OUTAGES.labels("orchestrator").inc()
        self._outbox.emit(self._from_server.lost())
        self._answered.set()
        began, backoff = time.monotonic(), _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)
            try:
                await self._open()
            except StatusError as again:
                metrics.count_hop_error("orchestrator", again.code)
                waited = time.monotonic() - began
                if again.code not in _LOST or waited > self._settings.reconnect_seconds:
                    raise
            else:
                self._lost, self._found_at = False, time.monotonic()
                metrics.RECONNECTS.inc()
                duration = metrics.OUTAGE_DURATION.labels("orchestrator")
                duration.observe(self._found_at - began)
                return

    def _take(self, response: ConverseResponse, now: float) -> None:
        asked = self._asked.pop(response.request_id, None)
        if asked is not None:
            metrics.HOP_ORCHESTRATOR.labels("request").observe(now - asked)
        outcome = self._from_server.translate(response, now)
        self._answered.set()
        self._traces.take(response, now)
        if outcome.events:
            self._outbox.emit(outcome.events, now, self._traces.sending(response, now))
        self.play(now)
        for request in outcome.requests:
            self._ask_soon(request, now)
        held = self._state.playout.held_bytes / 2 / self._state.config.output_rate_hz
        if held > _HELD_LIMIT_SECONDS:
            raise ConnectionEnd("answer too long", WSCloseCode.INTERNAL_ERROR)
        self._on_news()

    # --- the assistant's audio

    @property
    def playing(self) -> bool:
        """Whether time alone has audio sent, or playback reported: `play` is due again soon."""
        return self._state.playout.busy

    def play(self, now: float) -> None:
        """Sends the audio that is due, and tells how far it has been played."""
        for audio in self._state.playout.due(now):
            rate = self._state.config.output_rate_hz
            metrics.AUDIO.labels("out").inc(len(audio.data) / 2 / rate)
            self._outbox.emit(self._from_server.audio_due(audio), now)
        for report in self._state.playout.reports(now):
            self._ask_soon(ConverseRequest(playback=report), now)

    # --- requests

    def _ask_soon(self, request: ConverseRequest, now: float) -> None:
        if not self._requests.put_nowait((request, now)):
            raise ConnectionEnd("server too slow", WSCloseCode.TRY_AGAIN_LATER)

    async def send(self) -> None:
        """Sends requests as soon as there is a stream; audio of an outage would be stale later."""
        async for request, since in self._requests:
            is_audio = request.HasField("audio")
            if not (is_audio and self._lost):
                await self._upstream.wait_open()
            if is_audio and (self._lost or since < self._found_at):
                metrics.count_lost_input("no_stream", seconds_of(self._state, request.audio))
                continue
            asked = time.monotonic()
            if await self._upstream.write(request):
                metrics.ADDED.labels("in").observe(time.monotonic() - since)
                if request.request_id and len(self._asked) < _ASKED_LIMIT:
                    self._asked[request.request_id] = asked
            elif is_audio:
                metrics.count_lost_input("no_stream", seconds_of(self._state, request.audio))
