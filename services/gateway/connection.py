"""One client: its WebSocket, and the orchestrator's stream behind it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from minmo.rpc.errors import StatusError
from minmo.rpc.queues import BoundedStream, StreamClosedError
from minmo.settings import GatewaySettings
from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest
from services.gateway import client_events, metrics, parsing
from services.gateway.answer import Event
from services.gateway.ending import ConnectionEnd, end_of
from services.gateway.errors import INVALID_REQUEST, SERVER_ERROR, EventError
from services.gateway.from_client import FromClient
from services.gateway.from_server import FromServer
from services.gateway.history import items_of, restore
from services.gateway.limits import TokenBucket
from services.gateway.playout import Playout
from services.gateway.session import SessionConfig
from services.gateway.state import Outcome, Recording, State
from services.gateway.upstream import Upstream

log = structlog.get_logger()

SETTLE_SECONDS = 0.2
"""Time that a client has to change settings before the session is opened without."""
_OUT_LIMIT = 4096
_REQUESTS_LIMIT = 256
_PENDING_LIMIT = 32
_TICK_SECONDS = 0.05
_STEP_SECONDS = 0.01
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 2.0
_BACKLOG_SECONDS = 10.0
"""Audio that may come faster than real time before it is slowed down."""
_INPUT_SPEED = 8.0
_ERROR_EVERY_SECONDS = 1.0
_LAST_WORDS_SECONDS = 1.0
_HELD_LIMIT_SECONDS = 600.0

_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN})


@dataclass(frozen=True)
class Wish:
    """What the client asked for in the address.

    Attributes:
        model: name of the model, which changes nothing.
        session_id: the session to go on with; empty makes one.
        minmo: whether it wants MinMo's own events.
    """

    model: str = ""
    session_id: str = ""
    minmo: bool = False


@dataclass(frozen=True)
class _Out:
    events: Sequence[Event]
    since: float | None = None


class Connection:
    """Serves a client from its first to its last event.

    Args:
        settings: of the gateway.
        socket: open.
        upstream: nothing is open.
        wish: what it asked for.
        audio_quota: seconds of audio that the caller may send.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        socket: web.WebSocketResponse,
        upstream: Upstream,
        wish: Wish,
        audio_quota: TokenBucket,
    ) -> None:
        self._settings = settings
        self._socket = socket
        self._upstream = upstream
        self._session_id = wish.session_id
        self._quota = audio_quota
        now = time.monotonic()
        self._began = self._heard_from = now
        initial = client_events.Session(model=wish.model or None, minmo=wish.minmo or None)
        config = SessionConfig().updated(initial)
        self._state = State(
            f"sess_{uuid.uuid4().hex[:24]}",
            int(time.time() + settings.max_session_seconds),
            Playout(config.output_rate_hz, settings.max_lead_seconds),
            config=config,
            wanted=config,
        )
        self._told = self._state.config
        self._from_client = FromClient(self._state)
        self._from_server = FromServer(self._state)
        self._out: BoundedStream[_Out] = BoundedStream(
            _OUT_LIMIT, put_timeout_seconds=settings.read_deadline_seconds
        )
        self._requests: BoundedStream[tuple[ConverseRequest, float]] = BoundedStream(
            _REQUESTS_LIMIT,
            put_timeout_seconds=settings.reconnect_seconds,
            reader="the orchestrator",
        )
        self._messages = TokenBucket(
            settings.max_messages_per_second, settings.max_messages_per_second, now
        )
        self._speed = TokenBucket(_INPUT_SPEED, _BACKLOG_SECONDS, now)
        self._flooded_since: float | None = None
        self._error_at = -_ERROR_EVERY_SECONDS
        self._quota_error_at = -_ERROR_EVERY_SECONDS
        self._sent_ms = 0.0
        self._wanted_open = asyncio.Event()
        self._reopen = False
        self._draining = self._cut = False

    # --- life

    async def run(self) -> str:
        """Serves until one side or the other ends it; returns why."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            if self._session_id:
                await self._restore()
            else:
                self._emit([self._state.session_event("session.created")])
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self._receive(),
                    self._send(),
                    self._converse(),
                    self._ask(),
                    self._watch(),
                )
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            end = ConnectionEnd("ended")
        except ConnectionEnd as asked:
            end = asked
        except StatusError as failure:
            end = end_of(failure)
        except StreamClosedError:
            end = ConnectionEnd("client gone")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._upstream.close()
        await self._close(end)
        return end.reason

    def drain(self) -> None:
        """The process stops: ends the connection at the next good moment."""
        self._draining = True

    def cut(self) -> None:
        """Ends the connection now."""
        self._cut = self._draining = True

    async def _close(self, end: ConnectionEnd) -> None:
        """Says why, if the client still reads, and closes."""
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                if end.error is not None and not self._socket.closed:
                    metrics.ERRORS.labels(end.error.code).inc()
                    await self._write(end.error.to_event())
                await self._socket.close(code=end.code, message=end.reason.encode()[:120])
        except (TimeoutError, ConnectionError, RuntimeError):
            log.debug("the client does not read its end")
        except asyncio.CancelledError:
            # aiohttp lets all writers wait for one future, which ends with the first that gave up.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise

    async def _restore(self) -> None:
        """Takes up a session from before."""
        session = await self._upstream.session(self._session_id)
        self._state.config = self._state.wanted = restore(self._state.config, session)
        self._told = self._state.config
        events = [self._state.session_event("session.created")]
        for item in self._history(session):
            events += item
        self._emit(events)
        self._wanted_open.set()

    def _history(self, session: conversation_pb2.Session) -> list[list[Event]]:
        made = []
        for item in items_of(session, self._state.items):
            made.append(self._state.add_item(item))
            if item.turn is not None:
                self._state.saw_turn(item.turn)
        return made

    # --- from the client

    async def _receive(self) -> None:
        async for message in self._socket:
            self._heard_from = time.monotonic()
            if message.type is WSMsgType.TEXT:
                await self._hear(message.data, self._heard_from)
            elif message.type is WSMsgType.BINARY:
                self._fail(EventError("invalid_json", "Events are text, not binary frames."))
            elif message.type is WSMsgType.ERROR:
                raise ConnectionEnd("message too big", WSCloseCode.MESSAGE_TOO_BIG)
            await self._pace(time.monotonic())
        raise ConnectionEnd("client gone")

    async def _hear(self, text: str, now: float) -> None:
        event_id: str | None = None
        await self._wait_for_answers()
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
            self._wanted_open.set()
            await self._act(outcome, now)
        except EventError as error:
            self._fail(error, event_id)

    async def _wait_for_answers(self) -> None:
        """Reads no more while much that the client has asked for waits for the orchestrator."""
        for _ in range(int(self._settings.connect_deadline_seconds / _STEP_SECONDS)):
            if len(self._state.pending) < _PENDING_LIMIT:
                return
            await asyncio.sleep(_STEP_SECONDS)

    async def _act(self, outcome: Outcome, now: float) -> None:
        self._emit(outcome.events)
        if outcome.reopen:
            self._reopen = True
            self._upstream.close()
        for request in outcome.requests:
            if request.HasField("audio") and not await self._may_send(request.audio):
                continue
            await self._requests.put((request, now))
        if outcome.recording is not None:
            await self._recognise(outcome.recording, now)

    async def _may_send(self, audio: common_pb2.AudioChunk) -> bool:
        """Counts audio; waits where it comes much faster than it was spoken."""
        seconds = len(audio.data) / 2 / self._state.wanted.input_rate_hz
        now = time.monotonic()
        if not self._quota.take(seconds, now):
            if now - self._quota_error_at >= _ERROR_EVERY_SECONDS:
                self._quota_error_at = now
                self._fail(
                    EventError(
                        "rate_limit_exceeded",
                        f"More audio than {self._settings.audio_seconds_per_hour} s an hour: it "
                        "is not heard.",
                        kind="rate_limit_error",
                    )
                )
            return False
        metrics.AUDIO.labels("in").inc(seconds)
        self._sent_ms += seconds * 1000
        wait = self._speed.owe(seconds, now)
        if wait > 0:
            await asyncio.sleep(wait)
        return True

    async def _recognise(self, recording: Recording, now: float) -> None:
        request = conversation_pb2.TranscribeRequest(
            format=common_pb2.AudioFormat(
                encoding=common_pb2.AUDIO_ENCODING_PCM_S16LE,
                sample_rate_hz=recording.sample_rate_hz,
                channels=1,
            ),
            audio=recording.pcm,
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
            self._fail(
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

    # --- to the client

    def _emit(self, events: Sequence[Event], since: float | None = None) -> None:
        """Sends events, in the order of the calls. Raises `ConnectionEnd`: nobody reads them."""
        if events and not self._out.put_nowait(_Out(events, since)):
            raise ConnectionEnd("slow reader", WSCloseCode.POLICY_VIOLATION)

    def _fail(self, error: EventError, event_id: str | None = None) -> None:
        metrics.ERRORS.labels(error.code).inc()
        self._emit([error.to_event(event_id)])

    async def _send(self) -> None:
        async for out in self._out:
            for event in out.events:
                try:
                    async with asyncio.timeout(self._settings.read_deadline_seconds):
                        await self._write(event)
                except TimeoutError:
                    raise ConnectionEnd("slow reader", WSCloseCode.POLICY_VIOLATION) from None
                except (ConnectionError, RuntimeError):
                    raise ConnectionEnd("client gone") from None
                if event["type"] == "response.done":
                    await self._write(self._rate_limits())
            if out.since is not None:
                metrics.ADDED.labels("out").observe(time.monotonic() - out.since)

    async def _write(self, event: Event) -> None:
        metrics.EVENTS_OUT.labels(event["type"]).inc()
        event_id = f"event_{uuid.uuid4().hex[:20]}"
        text = json.dumps({"event_id": event_id} | event, separators=(",", ":"))
        await self._socket.send_str(text)

    def _rate_limits(self) -> Event:
        """What is left of the caller's audio, counted as the protocol counts it: in tokens."""
        now = time.monotonic()
        return {
            "type": "rate_limits.updated",
            "rate_limits": [
                {
                    "name": "tokens",
                    "limit": self._settings.audio_seconds_per_hour * 10,
                    "remaining": max(0, int(self._quota.left(now) * 10)),
                    "reset_seconds": round(self._quota.full_in(now), 3),
                }
            ],
        }

    # --- with the orchestrator

    async def _converse(self) -> None:
        """Opens the stream, reads it, and opens another if it is lost."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._wanted_open.wait()
        except TimeoutError:
            pass
        await self._open()
        while True:
            try:
                while (response := await self._upstream.read()) is not None:
                    self._take(response, time.monotonic())
            except StatusError as failure:
                if self._reopen:
                    await self._open()
                    continue
                if failure.code not in _LOST:
                    raise
                log.info("the orchestrator is lost", error=str(failure))
                await self._reconnect(failure)
                continue
            raise ConnectionEnd("server ended", WSCloseCode.GOING_AWAY)

    async def _open(self) -> None:
        state = self._state
        self._reopen = False
        state.offset_ms = int(self._sent_ms)
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
        response = await self._upstream.open(config)
        self._session_id = response.ready.session_id
        state.playout = Playout(output_format.sample_rate_hz, self._settings.max_lead_seconds)
        structlog.contextvars.bind_contextvars(session=self._session_id)
        self._take(response, time.monotonic())
        settings = state.wanted.to_proto()
        if settings != self._told.to_proto():
            # They have changed while the stream was opened, or before it was.
            self._told = state.wanted
            update = conversation_pb2.UpdateSettings(settings=settings)
            self._request_soon(ConverseRequest(update_settings=update), time.monotonic())

    async def _reconnect(self, failure: StatusError) -> None:
        """Finds the orchestrator again. Raises StatusError after the deadline, or if it refuses."""
        self._upstream.close()
        self._emit(self._from_server.lost())
        began, backoff = time.monotonic(), _FIRST_BACKOFF_SECONDS
        while True:
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)
            try:
                await self._open()
            except StatusError as again:
                waited = time.monotonic() - began
                if again.code not in _LOST or waited > self._settings.reconnect_seconds:
                    raise
            else:
                metrics.RECONNECTS.inc()
                return

    def _take(self, response: conversation_pb2.ConverseResponse, now: float) -> None:
        outcome = self._from_server.translate(response, now)
        self._emit(outcome.events, now)
        self._play(now)
        for request in outcome.requests:
            self._request_soon(request, now)
        held = self._state.playout.held_bytes / 2 / self._state.config.output_rate_hz
        if held > _HELD_LIMIT_SECONDS:
            raise ConnectionEnd("answer too long", WSCloseCode.INTERNAL_ERROR)

    def _play(self, now: float) -> None:
        """Sends the audio that is due, and tells how far it has been played."""
        for audio in self._state.playout.due(now):
            rate = self._state.config.output_rate_hz
            metrics.AUDIO.labels("out").inc(len(audio.data) / 2 / rate)
            self._emit(self._from_server.audio_due(audio), now)
        for report in self._state.playout.reports(now):
            self._request_soon(ConverseRequest(playback=report), now)

    def _request_soon(self, request: ConverseRequest, now: float) -> None:
        if not self._requests.put_nowait((request, now)):
            raise ConnectionEnd("server too slow", WSCloseCode.TRY_AGAIN_LATER)

    async def _ask(self) -> None:
        """Sends requests as long as there is a stream; audio meanwhile would be stale later."""
        async for request, since in self._requests:
            while not self._upstream.is_open:
                if request.HasField("audio") and self._session_id and not self._reopen:
                    break
                await asyncio.sleep(_STEP_SECONDS)
            if await self._upstream.write(request):
                metrics.ADDED.labels("in").observe(time.monotonic() - since)

    # --- time

    async def _watch(self) -> None:
        settings = self._settings
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            self._play(now)
            if now - self._began > settings.max_session_seconds:
                minutes = settings.max_session_seconds / 60
                raise ConnectionEnd(
                    "session expired",
                    error=EventError(
                        "session_expired",
                        f"Your session hit the maximum duration of {minutes:g} minutes.",
                    ),
                )
            if now - self._heard_from > settings.idle_seconds:
                raise ConnectionEnd(
                    "idle",
                    error=EventError(
                        "session_idle",
                        f"No event came for {settings.idle_seconds:g} s.",
                    ),
                )
            pauses = self._state.answer is None and self._state.unheard is None
            if self._cut or (self._draining and pauses and not self._state.user_item):
                raise ConnectionEnd("server stops", WSCloseCode.SERVICE_RESTART)
