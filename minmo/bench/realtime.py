"""A client of the gateway that measures: when audio was sent, when audio came, what was missing."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from minmo.audio.pcm import PcmFormat
from minmo.bench.arrivals import FRAME_SECONDS, RATE_HZ, Arrived
from minmo.client.errors import ClientError
from minmo.client.recording import Recording

_FRAME_SAMPLES = round(RATE_HZ * FRAME_SECONDS)
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_AUDIO = "response.output_audio.delta"
SOUND = "minmo.bench.sound"
"""Stands among the events for the first audio of an answer, with ``item_id`` and ``at``."""
CLOSED = "minmo.closed"
"""Stands among the events for the end of the connection, with ``code``."""


def append_events(recording: Recording) -> list[str]:
    """The recording as the events that a client sends, 20 ms each: made once, sent often."""
    pcm = PcmFormat(RATE_HZ).encode(recording.at_rate(RATE_HZ).samples)
    size = 2 * _FRAME_SAMPLES
    return [append_event(pcm[start : start + size]) for start in range(0, len(pcm), size)]


def append_event(pcm: bytes) -> str:
    """One frame, filled up with silence to 20 ms, as an event."""
    audio = base64.b64encode(pcm.ljust(2 * _FRAME_SAMPLES, b"\0")).decode()
    return json.dumps({"type": "input_audio_buffer.append", "audio": audio})


SILENCE = append_event(b"")


class RealtimeClient:
    """A connection to the gateway; its microphone is what `speak` is given.

    Use `connect`. The events that are not audio wait in `events`, bounded by what one
    conversation makes.

    Attributes:
        session_id: MinMo's session; empty until it is open.
        arrived: audio by item, in the order of the answers.
        late_ms: how late this process itself was to send the latest frames, at worst.
    """

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.session_id = ""
        self.arrived: dict[str, Arrived] = {}
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.late_ms = 0.0
        self._socket = socket
        self._sent_at: list[float] = []
        self._reader = asyncio.create_task(self._read(), name="realtime client")

    async def close(self) -> None:
        """Ends the connection."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._socket.close()

    async def send(self, event: dict[str, Any]) -> None:
        """Sends an event."""
        await self._socket.send_str(json.dumps(event))

    async def next(self, kind: str, seconds: float = 30.0) -> dict[str, Any]:
        """The next event of a type; others before it are dropped.

        Raises:
            ClientError: it did not come, the gateway sent an error, or the connection ended.
        """
        passed: list[str] = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    event = await self.events.get()
                    if event["type"] == kind:
                        return event
                    passed.append(f"{event['type']} {event.get('kind', '')}".strip())
                    if event["type"] in ("error", CLOSED):
                        raise ClientError(f"the gateway says {event} instead of {kind}")
        except TimeoutError:
            raise ClientError(
                f"the gateway sent no {kind} within {seconds:g} s, but {passed[-8:]}"
            ) from None

    async def speak(self, frames: Sequence[str], *, until_cancelled: bool = True) -> None:
        """Sends frames of `append_events` in real time, then silence until it is cancelled."""
        due = time.monotonic()
        number = 0
        while until_cancelled or number < len(frames):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late_ms = max(self.late_ms, (time.monotonic() - due) * 1000)
            await self.send_frame(frames[number] if number < len(frames) else SILENCE)
            number += 1
            due += FRAME_SECONDS

    async def send_frame(self, event: str) -> None:
        """Sends one frame of `append_events`."""
        self._sent_at.append(time.monotonic())
        await self._socket.send_str(event)

    @property
    def closed(self) -> bool:
        """Whether the gateway has ended the connection."""
        return self._socket.closed

    @property
    def sent_ms(self) -> float:
        """Audio that was sent, in milliseconds."""
        return len(self._sent_at) * FRAME_SECONDS * 1000

    def sent_at(self, position_ms: float) -> float | None:
        """When the audio up to a position of the connection was sent; None if it was not."""
        number = max(0, -int(-position_ms // (FRAME_SECONDS * 1000)) - 1)
        return self._sent_at[number] if number < len(self._sent_at) else None

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            now = time.monotonic()
            event = json.loads(message.data)
            if event["type"] == _AUDIO:
                samples = len(event["delta"]) * 3 // 4 // 2
                if event["delta"].endswith("="):
                    samples = len(base64.b64decode(event["delta"])) // 2
                self._sound(event["item_id"], now, samples)
                continue
            if event["type"] == "minmo.ready":
                self.session_id = event["session_id"]
            self.events.put_nowait(event)
        self.events.put_nowait({"type": CLOSED, "code": self._socket.close_code})

    def _sound(self, item_id: str, now: float, samples: int) -> None:
        answer = self.arrived.get(item_id)
        if answer is None:
            answer = self.arrived[item_id] = Arrived()
            self.events.put_nowait({"type": SOUND, "item_id": item_id, "at": now})
        answer.pieces.append((now, samples))


async def open_client(
    address: str,
    session: ClientSession,
    *,
    token: str | None = None,
    max_output_tokens: int = 24,
    session_id: str = "",
    transcription: bool = False,
) -> RealtimeClient:
    """Connects to a gateway, with MinMo's own events; close it afterwards.

    Args:
        address: ``host:port`` of the gateway.
        session: makes the connection.
        token: API key.
        max_output_tokens: of one answer.
        session_id: the session to go on with; empty makes one.
        transcription: asks for the user's words.

    Raises:
        ClientError: the gateway does not open a session, or ends the connection.
        aiohttp.ClientError, OSError: it cannot be reached, or refuses.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    going_on = f"&session_id={session_id}" if session_id else ""
    socket = await session.ws_connect(
        f"ws://{address}/v1/realtime?model=minmo&minmo=1{going_on}",
        headers=headers,
        max_msg_size=_MAX_MESSAGE_BYTES,
    )
    client = RealtimeClient(socket)
    wanted: dict[str, Any] = {"type": "realtime", "max_output_tokens": max_output_tokens}
    if transcription:
        wanted["audio"] = {"input": {"transcription": {}}}
    try:
        await client.next("session.created", 15)
        await client.send({"type": "session.update", "session": wanted})
        await client.next("session.updated", 15)
    except BaseException:
        await client.close()
        raise
    return client


@asynccontextmanager
async def connect(
    address: str,
    session: ClientSession,
    *,
    token: str | None = None,
    max_output_tokens: int = 24,
) -> AsyncIterator[RealtimeClient]:
    """Connects to a gateway as `open_client` does, and closes the connection at the end."""
    client = await open_client(address, session, token=token, max_output_tokens=max_output_tokens)
    try:
        yield client
    finally:
        await client.close()
