"""Events on their way to a client: in order, bounded, with a deadline for who does not read."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import WSCloseCode, web

from minmo.rpc import metrics, tracing
from minmo.rpc.queues import BoundedStream
from minmo.settings import GatewaySettings
from services.gateway.answer import Event
from services.gateway.ending import ConnectionEnd
from services.gateway.errors import EventError
from services.gateway.limits import TokenBucket
from services.gateway.pings import Pings

_LIMIT = 4096
_ROOM = 64
"""Writes that may wait before no more is read: a small event may have a large answer."""


@dataclass(frozen=True)
class _Out:
    events: Sequence[Event]
    since: float | None = None
    ping: bool = False
    span: tracing.Span = tracing.NONE


class Outbox:
    """What a client is sent.

    Args:
        settings: of the gateway.
        socket: open.
        audio_quota: seconds of audio that the caller may send; its events say what is left.
        pings: of the connection.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        socket: web.WebSocketResponse,
        audio_quota: TokenBucket,
        pings: Pings,
    ) -> None:
        self._settings = settings
        self._socket = socket
        self._quota = audio_quota
        self._pings = pings
        self._out: BoundedStream[_Out] = BoundedStream(
            _LIMIT, put_timeout_seconds=settings.read_deadline_seconds
        )
        self._wrote = asyncio.Event()

    async def wait_room(self) -> None:
        """Waits while the client has not read what came before."""
        while len(self._out) >= _ROOM:
            self._wrote.clear()
            await self._wrote.wait()

    def emit(
        self,
        events: Sequence[Event],
        since: float | None = None,
        span: tracing.Span = tracing.NONE,
    ) -> None:
        """Sends events, in the order of the calls. Raises `ConnectionEnd`: nobody reads them.

        Args:
            events: without ids.
            since: when what they tell was learnt, for the metric of what the gateway adds.
            span: of their turn's trace; it ends when they are written.
        """
        if events and not self._out.put_nowait(_Out(events, since, span=span)):
            raise ConnectionEnd("slow reader", WSCloseCode.POLICY_VIOLATION)

    def fail(self, error: EventError, event_id: str | None = None) -> None:
        """Tells of an error. Raises `ConnectionEnd` as `emit`."""
        metrics.ERRORS.labels(error.code).inc()
        self.emit([error.to_event(event_id)])

    def ping(self) -> None:
        """Sends a ping behind what waits."""
        self._out.put_nowait(_Out((), ping=True))

    async def run(self) -> None:
        """Writes until it is cancelled. Raises `ConnectionEnd`: the client is gone or reads not."""
        async for out in self._out:
            self._wrote.set()
            for event in out.events:
                await self._in_time(event)
                if event["type"] == "response.done":
                    await self._in_time(self._rate_limits())
            if out.ping:
                await self._in_time(None)
            out.span.end()
            if out.since is not None:
                metrics.ADDED.labels("out").observe(time.monotonic() - out.since)

    async def write(self, event: Event) -> None:
        """Writes an event past those that wait: the last one."""
        metrics.EVENTS_OUT.labels(event["type"]).inc()
        event_id = f"event_{uuid.uuid4().hex[:20]}"
        text = json.dumps({"event_id": event_id} | event, separators=(",", ":"))
        await self._socket.send_str(text)

    async def _in_time(self, event: Event | None) -> None:
        """Writes an event, or a ping."""
        try:
            async with asyncio.timeout(self._settings.read_deadline_seconds):
                if event is None:
                    await self._socket.ping(self._pings.payload(time.monotonic()))
                else:
                    await self.write(event)
        except TimeoutError:
            raise ConnectionEnd("slow reader", WSCloseCode.POLICY_VIOLATION) from None
        except (ConnectionError, RuntimeError):
            raise ConnectionEnd("client gone") from None

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
