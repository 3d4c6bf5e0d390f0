"""One client: its WebSocket, and the orchestrator's stream behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import WSCloseCode, web

from minmo.rpc import metrics
from minmo.rpc.errors import StatusError
from minmo.rpc.queues import StreamClosedError
from minmo.settings import GatewaySettings
from services.gateway import client_events
from services.gateway.ending import ConnectionEnd, end_of
from services.gateway.errors import EventError
from services.gateway.exchange import Exchange
from services.gateway.history import items_of, restore
from services.gateway.inbox import Inbox
from services.gateway.limits import TokenBucket
from services.gateway.outbox import Outbox
from services.gateway.pings import EVERY_SECONDS as PING_SECONDS
from services.gateway.pings import Pings
from services.gateway.playout import Playout
from services.gateway.session import SessionConfig
from services.gateway.state import State
from services.gateway.upstream import Upstream

log = structlog.get_logger()

_TICK_SECONDS = 0.05
_LAST_WORDS_SECONDS = 1.0


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
        self._wish = wish
        self._began = time.monotonic()
        initial = client_events.Session(model=wish.model or None, minmo=wish.minmo or None)
        config = SessionConfig().updated(initial)
        self._state = State(
            f"sess_{uuid.uuid4().hex[:24]}",
            int(time.time() + settings.max_session_seconds),
            Playout(config.output_rate_hz, settings.max_lead_seconds),
            config=config,
            wanted=config,
        )
        self._news = asyncio.Event()
        self._pings = pings = Pings()
        self._outbox = outbox = Outbox(settings, socket, audio_quota, pings)
        self._exchange = exchange = Exchange(
            settings, self._state, upstream, outbox, wish.session_id, self._news.set
        )
        self._inbox = Inbox(
            settings, socket, self._state, exchange, upstream, outbox, audio_quota, pings
        )
        self._draining = self._cut = False

    async def run(self) -> str:
        """Serves until one side or the other ends it; returns why."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            if self._wish.session_id:
                await self._restore(self._wish.session_id)
            else:
                self._outbox.emit([self._state.session_event("session.created")])
            tasks = [
                asyncio.create_task(work)
                for work in (
                    self._inbox.run(),
                    self._outbox.run(),
                    self._exchange.converse(),
                    self._exchange.send(),
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
            self._exchange.close()
        await self._close(end)
        return end.reason

    def drain(self) -> None:
        """The process stops: ends the connection at the next good moment."""
        self._draining = True
        self._news.set()

    def cut(self) -> None:
        """Ends the connection now."""
        self._cut = True
        self.drain()

    async def _close(self, end: ConnectionEnd) -> None:
        """Says why, if the client still reads, and closes."""
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                if end.error is not None and not self._socket.closed:
                    metrics.ERRORS.labels(end.error.code).inc()
                    await self._outbox.write(end.error.to_event())
                await self._socket.close(code=end.code, message=end.reason.encode()[:120])
        except (TimeoutError, ConnectionError, RuntimeError):
            log.debug("the client does not read its end")
        except asyncio.CancelledError:
            # aiohttp lets all writers wait for one future, which ends with the first that gave up.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise

    async def _restore(self, session_id: str) -> None:
        """Takes up a session from before: its settings, and its turns as items."""
        state = self._state
        session = await self._upstream.session(session_id)
        self._exchange.restore(restore(state.config, session))
        events = [state.session_event("session.created")]
        for item in items_of(session, state.items):
            events += state.add_item(item)
            if item.turn is not None:
                state.saw_turn(item.turn)
        self._outbox.emit(events)

    # --- time

    async def _watch(self) -> None:
        """Does what time brings; sleeps while it brings nothing."""
        settings = self._settings
        while True:
            now = time.monotonic()
            self._exchange.play(now)
            if self._pings.due(now):
                self._outbox.ping()
            if now - self._began > settings.max_session_seconds:
                minutes = settings.max_session_seconds / 60
                raise ConnectionEnd(
                    "session expired",
                    error=EventError(
                        "session_expired",
                        f"Your session hit the maximum duration of {minutes:g} minutes.",
                    ),
                )
            if now - self._inbox.heard_from > settings.idle_seconds:
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._rest_seconds(now)):
                    await self._news.wait()
            self._news.clear()

    def _rest_seconds(self, now: float) -> float:
        """Time until something is due without any news."""
        if self._exchange.playing:
            return _TICK_SECONDS
        ends_at = self._began + self._settings.max_session_seconds
        idle_at = self._inbox.heard_from + self._settings.idle_seconds
        return _TICK_SECONDS + min(PING_SECONDS, max(0.0, min(ends_at, idle_at) - now))
