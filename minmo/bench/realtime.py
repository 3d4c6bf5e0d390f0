"""A client of the gateway that measures: when audio was sent, when audio came, what was missing."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from minmo.audio.pcm import PcmFormat
from minmo.client.errors import ClientError
from minmo.client.recording import Recording

RATE_HZ = 24_000
FRAME_SECONDS = 0.02
_FRAME_SAMPLES = round(RATE_HZ * FRAME_SECONDS)
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_AUDIO = "response.output_audio.delta"


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


@dataclass
class Arrived:
    """Audio of one answer, as it came.

    Attributes:
        pieces: of each event with audio, its time on the monotonic clock, and how many samples.
    """

    pieces: list[tuple[float, int]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Samples that came."""
        return sum(count for _, count in self.pieces)

    def stutter_ms(self) -> float:
        """Longest silence within the answer at a loudspeaker that begins with its first piece."""
        longest, played_until = 0.0, None
        for at, count in self.pieces:
            if played_until is None:
                played_until = at
            longest = max(longest, at - played_until)
            played_until = max(at, played_until) + count / RATE_HZ
        return longest * 1000


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
                    if event["type"] in ("error", "minmo.closed"):
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
            now = time.monotonic()
            self.late_ms = max(self.late_ms, (now - due) * 1000)
            self._sent_at.append(now)
            await self._socket.send_str(frames[number] if number < len(frames) else SILENCE)
            number += 1
            due += FRAME_SECONDS

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
                self.arrived.setdefault(event["item_id"], Arrived()).pieces.append((now, samples))
                continue
            if event["type"] == "minmo.ready":
                self.session_id = event["session_id"]
            self.events.put_nowait(event)
        self.events.put_nowait({"type": "minmo.closed", "code": self._socket.close_code})


@asynccontextmanager
async def connect(
    address: str,
    session: ClientSession,
    *,
    token: str | None = None,
    max_output_tokens: int = 24,
) -> AsyncIterator[RealtimeClient]:
    """Connects to a gateway, with MinMo's own events.

    Args:
        address: ``host:port`` of the gateway.
        session: makes the connection.
        token: API key.
        max_output_tokens: of one answer.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.ws_connect(
        f"ws://{address}/v1/realtime?model=minmo&minmo=1",
        headers=headers,
        max_msg_size=_MAX_MESSAGE_BYTES,
    ) as socket:
        client = RealtimeClient(socket)
        try:
            await client.next("session.created", 15)
            await client.send(
                {
                    "type": "session.update",
                    "session": {"type": "realtime", "max_output_tokens": max_output_tokens},
                }
            )
            await client.next("session.updated", 15)
            yield client
        finally:
            await client.close()
