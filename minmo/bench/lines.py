"""The two ways to talk with MinMo, as a simulated user has them: gRPC, a gateway's WebSocket.

Both tell what happens as the events of `minmo.client`, keep the times of the audio that came,
report every 100 ms how far it was played, and go on in the same session when a connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import aiohttp
import numpy as np

from minmo.audio.pcm import PcmFormat, Samples
from minmo.bench.arrivals import FRAME_SECONDS, RATE_HZ, Arrived
from minmo.bench.realtime import (
    CLOSED,
    SILENCE,
    RealtimeClient,
    append_event,
    open_client,
)
from minmo.client import Conversation, Recording, Target
from minmo.client.conversation import PLAYBACK_SECONDS
from minmo.client.errors import ClientError
from minmo.client.events import (
    AssistantText,
    AudioReceived,
    Disconnected,
    Happening,
    Ready,
    Reconnected,
    Span,
    StopPlayback,
    TurnDeleted,
    TurnEvent,
    TurnReport,
    UserText,
)
from minmo.rpc.errors import StatusError
from minmo.v1.conversation_pb2 import SessionSettings

RECONNECT_SECONDS = 30.0
"""Longest time that a lost server is looked for."""
FRAME_SAMPLES = round(RATE_HZ * FRAME_SECONDS)
_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 2.0
# How connections end after which another one can be had: see docs/realtime.md.
_MAY_COME_BACK = frozenset({None, 1001, 1006, 1011, 1012, 1013})


class LineError(Exception):
    """The line is lost for good.

    Attributes:
        reason: code and reason, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Sound:
    """The first audio of an answer has come; the rest is in `Line.answers`."""

    utterance_id: str
    at_seconds: float


LineEvent: TypeAlias = (
    Sound
    | TurnEvent
    | UserText
    | TurnDeleted
    | TurnReport
    | StopPlayback
    | Disconnected
    | Reconnected
)


@dataclass(frozen=True)
class Frame:
    """20 ms of a microphone, made once and sent often: as samples, and as an event."""

    samples: Samples
    event: str


@dataclass(frozen=True)
class Question:
    """A recording to say.

    Attributes:
        name: of its file.
        frames: at 24 kHz.
        spoken_frames: frames up to the end of the last sound that is speech.
    """

    name: str
    frames: tuple[Frame, ...]
    spoken_frames: int

    @classmethod
    def of(cls, recording: Recording) -> Self:
        """Cuts a recording into frames, the last one filled up with silence."""
        samples = recording.at_rate(RATE_HZ).samples
        rows = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
        pcm = PcmFormat(RATE_HZ)
        frames = tuple(Frame(row, append_event(pcm.encode(row))) for row in rows)
        spoken_ms = recording.at_rate(RATE_HZ).speech_end_ms()
        spoken = math.ceil(round(spoken_ms / (1000 * FRAME_SECONDS), 6))
        return cls(recording.path.name, frames, min(len(frames), spoken))


QUIET = Frame(np.zeros(FRAME_SAMPLES, np.float32), SILENCE)
"""20 ms of silence."""


class Line(ABC):
    """A conversation over as many connections as it takes; use it with ``async with``.

    Attributes:
        session_id: MinMo's session; empty until it is open.
        answers: audio by answer, in the order in which they began.
        errors: what went wrong without ending the conversation, by code.
    """

    def __init__(self) -> None:
        self.session_id = ""
        self.answers: dict[str, Arrived] = {}
        self.errors: list[str] = []

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Connects. Raises LineError."""

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the conversation."""

    @abstractmethod
    async def send(self, frame: Frame) -> None:
        """Sends audio of the microphone; it is lost while there is no connection."""

    @abstractmethod
    def events(self) -> AsyncIterator[LineEvent]:
        """What happens, in order. Raises LineError when the session is lost."""

    @abstractmethod
    def sent_at(self, position_ms: float) -> float | None:
        """When the audio up to a position of the server's stream was sent; None if it was not."""

    def heard_text(self, utterance_id: str) -> str | None:
        """What was heard of an answer as its marks say; None where there are no marks."""
        return None


class GrpcLine(Line):
    """Through `minmo.client`, as any program would.

    Args:
        target: the server.
        answer_tokens: most text tokens of an answer.
        speed: how much faster than real time the loudspeaker plays; infinite plays at once.
    """

    def __init__(self, target: Target, answer_tokens: int, *, speed: float = 1.0) -> None:
        super().__init__()
        self._conversation = Conversation(
            target,
            input_rate_hz=RATE_HZ,
            output_rate_hz=RATE_HZ,
            settings=SessionSettings(max_answer_tokens=answer_tokens),
            reconnect_seconds=RECONNECT_SECONDS,
            speed=speed,
        )
        self._texts: dict[str, list[str]] = {}
        self._marks: dict[str, list[tuple[int, int]]] = {}

    async def __aenter__(self) -> Self:
        """Connects."""
        try:
            await self._conversation.__aenter__()
        except StatusError as failure:
            raise _lost(failure) from None
        self.session_id = self._conversation.session_id
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the stream."""
        await self._conversation.__aexit__(kind, error, traceback)

    async def send(self, frame: Frame) -> None:
        """Sends audio of the microphone."""
        await self._conversation.send_audio(frame.samples)

    async def events(self) -> AsyncIterator[LineEvent]:
        """What happens, in order."""
        try:
            async for event in self._conversation.events:
                match event:
                    case AudioReceived():
                        if self._heard(event):
                            yield Sound(event.utterance_id, event.at_seconds)
                    case AssistantText():
                        self._texts.setdefault(event.utterance_id, []).append(event.text)
                    case StopPlayback():
                        self._stopped(event.utterance_id)
                        yield event
                    case TurnEvent() | UserText() | TurnReport() | Disconnected() | Reconnected():
                        yield event
                    case _:
                        pass
        except StatusError as failure:
            raise _lost(failure) from None

    def sent_at(self, position_ms: float) -> float | None:
        """When the audio up to a position of the server's stream was sent."""
        return self._conversation.sent_at(position_ms)

    def heard_text(self, utterance_id: str) -> str | None:
        """What was heard of an answer as its marks say."""
        played = len(self._conversation.speaker.heard(utterance_id))
        marks = self._marks.get(utterance_id, [])
        place = bisect_right(marks, played, key=lambda mark: mark[1])
        count = marks[place - 1][0] if place else 0
        return "".join(self._texts.get(utterance_id, [])[:count])

    def _heard(self, audio: AudioReceived) -> bool:
        """Notes a piece of audio; whether it is the answer's first."""
        self._marks.setdefault(audio.utterance_id, []).extend(audio.marks)
        if not len(audio.samples):
            return False
        is_first = audio.utterance_id not in self.answers
        answer = self.answers.setdefault(audio.utterance_id, Arrived())
        answer.pieces.append((audio.at_seconds, len(audio.samples)))
        return is_first

    def _stopped(self, utterance_id: str) -> None:
        answer = self.answers.get(utterance_id)
        if answer is not None and answer.stopped_at is None:
            answer.stopped_at = time.monotonic()


class GatewayLine(Line):
    """Through a gateway, as a page would; a lost connection is made again at the next address.

    Args:
        addresses: ``host:port`` of the gateways, the first one first.
        web: makes the connections.
        token: API key.
        answer_tokens: most text tokens of an answer.
        at_once: plays an answer as soon as all of it has come, rather than in real time.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        web: aiohttp.ClientSession,
        token: str | None,
        answer_tokens: int,
        *,
        at_once: bool = False,
    ) -> None:
        super().__init__()
        self._addresses = deque(addresses)
        self._web = web
        self._token = token
        self._answer_tokens = answer_tokens
        self._at_once = at_once
        self._client: RealtimeClient | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._reported: dict[str, tuple[int, bool]] = {}
        self._whole: set[str] = set()
        self._turns: dict[str, int] = {}
        self._disconnected_at: float | None = None
        self._has_stream = False

    async def __aenter__(self) -> Self:
        """Connects."""
        try:
            await self._connect()
        except (ClientError, aiohttp.ClientError, OSError) as failure:
            raise LineError(_web_reason(failure), str(failure)) from None
        self._reporting = asyncio.create_task(self._report(), name="report playback")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends the connection."""
        if self._reporting is not None:
            self._reporting.cancel()
            await asyncio.gather(self._reporting, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def send(self, frame: Frame) -> None:
        """Sends audio of the microphone."""
        if self._client is not None:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await self._client.send_frame(frame.event)

    async def events(self) -> AsyncIterator[LineEvent]:
        """What happens, in order."""
        while True:
            assert self._client is not None, "events come within `async with`"
            event = await self._client.events.get()
            if event["type"] == CLOSED:
                yield self._lost(f"the gateway closed the connection ({event['code']})")
                await self._reconnect(event["code"])
                yield self._back()
                continue
            for told in self._translate(event):
                yield told

    def sent_at(self, position_ms: float) -> float | None:
        """When the audio up to a position of the server's stream was sent."""
        return None if self._client is None else self._client.sent_at(position_ms)

    # --- connections

    async def _connect(self) -> None:
        client = await open_client(
            self._addresses[0],
            self._web,
            token=self._token,
            max_output_tokens=self._answer_tokens,
            session_id=self.session_id,
            transcription=True,
        )
        # Of an answer whose connection was lost, what came is played, and no more comes.
        client.arrived = self.answers
        self._client = client
        self._has_stream = bool(client.session_id)
        self.session_id = client.session_id or self.session_id

    async def _reconnect(self, code: int | None) -> None:
        """Finds a gateway again. Raises LineError: there is no use in it, or none is there."""
        if self._client is not None:
            await self._client.close()
        self._client = None
        if code not in _MAY_COME_BACK:
            raise LineError(f"WebSocket {code}", "the gateway ended the connection for good")
        give_up = time.monotonic() + RECONNECT_SECONDS
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            self._addresses.rotate(-1)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LAST_BACKOFF_SECONDS)
            try:
                await self._connect()
            except (ClientError, aiohttp.ClientError, OSError) as failure:
                if time.monotonic() > give_up:
                    raise LineError(_web_reason(failure), str(failure)) from None
            else:
                return

    def _lost(self, why: str) -> Disconnected:
        self._disconnected_at = time.monotonic()
        return Disconnected(why)

    def _back(self) -> Reconnected:
        since, self._disconnected_at = self._disconnected_at, None
        seconds = 0.0 if since is None else time.monotonic() - since
        return Reconnected(seconds, Ready(self.session_id, True, 0, ""))

    # --- the protocol's events, as those of `minmo.client`

    def _translate(self, event: dict[str, Any]) -> list[LineEvent]:
        told: list[LineEvent] = []
        match event["type"]:
            case "minmo.bench.sound":
                told.append(Sound(event["item_id"], event["at"]))
            case "response.output_audio.done":
                self._whole.add(event["item_id"])
            case "error":
                told += self._failed(event["error"]["code"] or event["error"]["type"])
            case "response.done" if event["response"]["status"] == "failed":
                details = event["response"]["status_details"] or {}
                told += self._failed(details.get("error", {}).get("code", "failed"))
            case "conversation.item.input_audio_transcription.completed":
                told.append(UserText(self._turn(event["item_id"]), event["transcript"], True))
            case "conversation.item.deleted":
                told.append(TurnDeleted(self._turn(event["item_id"])))
            case "minmo.turn_event":
                told.append(_turn_event(event))
            case "minmo.turn_report":
                told.append(_turn_report(event))
            case "minmo.stop_playback":
                told += self._stopped(event["item_id"])
            case "minmo.ready":
                told += self._ready(event["session_id"])
        return told

    def _turn(self, item_id: str) -> int:
        """A number for a turn of the user whose own is not known: below 0, falling."""
        return self._turns.setdefault(item_id, -1 - len(self._turns))

    def _failed(self, code: str) -> list[LineEvent]:
        if code == "orchestrator_lost":
            return [] if self._disconnected_at is not None else [self._lost(code)]
        self.errors.append(code)
        return []

    def _ready(self, session_id: str) -> list[LineEvent]:
        """The gateway has a stream; another one, if there was one before."""
        self.session_id = session_id
        if not self._has_stream:
            self._has_stream = True
            return []
        lost: list[LineEvent] = []
        if self._disconnected_at is None:
            lost = [self._lost("the gateway lost the orchestrator")]
        return [*lost, self._back()]

    def _stopped(self, item_id: str) -> list[LineEvent]:
        answer = self.answers.get(item_id)
        if answer is not None and answer.stopped_at is None:
            answer.stopped_at = time.monotonic()
        return [StopPlayback(item_id)]

    # --- playback

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(PLAYBACK_SECONDS)
            for item_id, answer in self.answers.items():
                if self._reported.get(item_id, (0, False))[1]:
                    continue
                played = answer.samples if self._at_once else answer.played(time.monotonic())
                all_of_it = item_id in self._whole and played >= answer.samples
                news = (played, all_of_it or answer.stopped_at is not None)
                if news != self._reported.get(item_id) and await self._tell(item_id, *news):
                    self._reported[item_id] = news

    async def _tell(self, item_id: str, played: int, finished: bool) -> bool:
        if self._client is None or self._client.closed:
            return False
        event = {
            "type": "minmo.playback",
            "item_id": item_id,
            "played_samples": played,
            "finished": finished,
        }
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await self._client.send(event)
            return True
        return False


def _lost(failure: StatusError) -> LineError:
    reason = f"{failure.code.name} {failure.reason}".strip()
    return LineError(reason, failure.message)


def _web_reason(failure: Exception) -> str:
    if isinstance(failure, aiohttp.WSServerHandshakeError):
        return f"HTTP {failure.status}"
    return type(failure).__name__


def _turn_event(event: dict[str, Any]) -> TurnEvent:
    try:
        kind = Happening(event["kind"])
    except ValueError:
        kind = Happening.UNKNOWN
    return TurnEvent(
        kind, event["audio_ms"], event["item_id"] or "", event["detail"], time.monotonic()
    )


def _turn_report(event: dict[str, Any]) -> TurnReport:
    return TurnReport(
        utterance_id=event["item_id"] or "",
        user_turn_index=-1,
        assistant_turn_index=-1,
        outcome=event["outcome"],
        heard_text=event["heard_text"],
        generated_text=event["generated_text"],
        first_audio_ms=event["first_audio_ms"],
        waterfall=tuple(Span(**span) for span in event["waterfall"]),
        token_count=event["token_count"],
        audio_ms=event["audio_ms"],
        voice_compute_ms=event["voice_compute_ms"],
        generate_ms=event["generate_ms"],
        detail=event["detail"],
    )
