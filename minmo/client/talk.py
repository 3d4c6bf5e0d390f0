"""Asking with a recording and hearing the answer, with times: for command line, bench, tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from minmo.audio.pcm import Samples
from minmo.client.conversation import Conversation
from minmo.client.errors import ClientError, NothingSaidError
from minmo.client.events import (
    AssistantText,
    AudioReceived,
    Disconnected,
    Event,
    Happening,
    Reconnected,
    Span,
    TurnEvent,
    TurnReport,
    UserText,
)
from minmo.client.microphone import Microphone
from minmo.client.recording import Recording

SILENCE_SECONDS = 3.0
"""Silence after a recording after which it had no speech."""

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class TalkTurn:
    """A question and its answer; times in milliseconds.

    Attributes:
        first_audio_ms: from sending the last sample of the user's speech to the first sample of
            the answer, at the client; None without an answer or a known end of speech.
        server_first_audio_ms: the server's part of it.
        network_ms: what the server does not see of it: the way there and back.
        tokens_per_second: of the LLM, over the answer.
        token2wav_ms: the end of the hop first_audio, after the first speech tokens; 0 where the
            voice has none.
        heard: float32 [samples] at the output rate: what was played.
        troubles: what was lost and came back meanwhile.
    """

    question: str
    session_id: str
    mode: str
    user_text: str
    generated_text: str
    heard_text: str
    outcome: str
    detail: str
    first_audio_ms: float | None
    server_first_audio_ms: float
    network_ms: float | None
    waterfall: tuple[Span, ...]
    token_count: int
    generate_ms: float
    tokens_per_second: float | None
    audio_ms: int
    voice_compute_ms: float
    heard: Samples = field(repr=False)
    troubles: tuple[str, ...] = ()
    token2wav_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything but the sound."""
        values = asdict(self)
        del values["heard"]
        return values


class _Tracker:
    """Puts the events of one recording together to turns."""

    def __init__(self, conversation: Conversation, recording: Recording, mic: Microphone) -> None:
        self.turns: list[TalkTurn] = []
        self.nothing_said = False
        self.speaking = False
        self.awaiting = False
        self.spoken = False
        self._conversation = conversation
        self._recording = recording
        self._mic = mic
        # Position in the server's stream at which the recording begins.
        self._offset_ms = conversation.position_ms
        self._speech_end_ms: float | None = None
        self._user_texts: dict[int, str] = {}
        self._answers: dict[str, str] = {}
        self._first_audio: dict[str, float] = {}
        self._troubles: list[str] = []

    @property
    def over(self) -> bool:
        """Whether everything that was said was answered."""
        return (
            self._mic.recording_sent.is_set()
            and not self.speaking
            and not self.awaiting
            and bool(self.turns or self.nothing_said)
        )

    @property
    def silent(self) -> bool:
        """Whether no speech was noticed, though there was time to."""
        # A fast microphone is ahead of a server that is busy: the clock on the wall counts too.
        sent = self._mic.sent_at(self._recording.duration_ms)
        if self.spoken or self.awaiting or sent is None:
            return False
        silent_ms = self._mic.position_ms - self._recording.duration_ms
        return min(silent_ms / 1000, time.monotonic() - sent) > SILENCE_SECONDS

    def take(self, event: Event) -> None:
        """Takes the next event."""
        match event:
            case TurnEvent():
                self._happened(event)
            case UserText():
                self._user_texts[event.turn_index] = event.text
            case AssistantText():
                said = self._answers.get(event.utterance_id, "")
                self._answers[event.utterance_id] = said + event.text
            case AudioReceived() if len(event.samples):
                self._first_audio.setdefault(event.utterance_id, event.at_seconds)
            case TurnReport():
                self.awaiting = False
                self.turns.append(self._turn(event))
                self._troubles.clear()
            case Disconnected():
                self._troubles.append(f"connection lost: {event.reason}")
            case Reconnected():
                self._troubles.append(f"connection back after {event.seconds:.1f} s")
                self._offset_ms = -self._mic.position_ms
                self._speech_end_ms = None
            case _:
                pass

    def _happened(self, event: TurnEvent) -> None:
        match event.kind:
            case Happening.USER_SPEECH_STARTED:
                self.speaking = self.spoken = True
            case Happening.USER_TURN_ENDED:
                self.speaking, self.awaiting = False, True
                self._speech_end_ms = event.audio_ms
            case Happening.NOTHING_SAID:
                self.speaking = self.awaiting = False
                self.nothing_said = True
            case Happening.INTERRUPTED:
                self.awaiting = False
            case Happening.RECOVERING | Happening.RECOVERED:
                self._troubles.append(f"{event.kind}: {event.detail}")
            case _:
                pass

    def _turn(self, report: TurnReport) -> TalkTurn:
        first_audio = self._first_audio.get(report.utterance_id)
        tokens_per_second = None
        if report.token_count > 1 and report.generate_ms > 0:
            tokens_per_second = (report.token_count - 1) * 1000 / report.generate_ms
        network_ms = None
        if first_audio is not None and self._speech_end_ms is not None:
            sent = self._conversation.sent_at(self._speech_end_ms)
            if sent is not None:
                network_ms = (first_audio - sent) * 1000 - report.first_audio_ms
        return TalkTurn(
            question=str(self._recording.path),
            session_id=self._conversation.session_id,
            mode=self._conversation.mode,
            user_text=self._user_texts.get(report.user_turn_index, ""),
            generated_text=report.generated_text or self._answers.get(report.utterance_id, ""),
            heard_text=report.heard_text,
            outcome=report.outcome,
            detail=report.detail,
            first_audio_ms=self._first_audio_ms(first_audio),
            server_first_audio_ms=report.first_audio_ms,
            network_ms=network_ms,
            waterfall=report.waterfall,
            token_count=report.token_count,
            generate_ms=report.generate_ms,
            tokens_per_second=tokens_per_second,
            audio_ms=report.audio_ms,
            voice_compute_ms=report.voice_compute_ms,
            heard=self._conversation.speaker.heard(report.utterance_id),
            troubles=tuple(self._troubles),
            token2wav_ms=report.token2wav_ms,
        )

    def _first_audio_ms(self, first_audio: float | None) -> float | None:
        """From the end of speech, as the recording itself shows it, to the first audio."""
        if first_audio is None:
            return None
        # The server's end of speech only tells which of several turns of the recording it is.
        before_ms = None
        if self._speech_end_ms is not None:
            before_ms = self._speech_end_ms - self._offset_ms + _TURN_MARGIN_MS
        sent = self._mic.sent_at(self._recording.speech_end_ms(before_ms))
        return None if sent is None else (first_audio - sent) * 1000


# The ends of speech that the recording's loudness and the server's detector show differ by less.
_TURN_MARGIN_MS = 300.0


async def ask(
    conversation: Conversation,
    recording: Recording,
    *,
    speed: float = 1.0,
    deadline_seconds: float = 30.0,
    listener: Callable[[Event], None] = lambda _: None,
) -> list[TalkTurn]:
    """Plays a recording into a conversation and waits until what it says was answered and played.

    The microphone stays open and sends silence meanwhile, as a real one does. A recording with a
    long pause may well be several turns.

    Args:
        conversation: an open one; its loudspeaker should play at the same speed.
        recording: what to say.
        speed: of the microphone; see `Microphone`.
        deadline_seconds: longest time without any news after the recording was sent.
        listener: hears of each event.

    Raises:
        NothingSaidError: no speech was noticed in it, or no words.
        ClientError: no answer came in time.
        StatusError: the server refused or is gone.
    """
    mic = Microphone(conversation, recording, speed)
    tracker = _Tracker(conversation, recording, mic)
    sending = asyncio.create_task(mic.run(), name="microphone")
    news = time.monotonic()
    try:
        while not tracker.over:
            if sending.done():
                sending.result()
            try:
                event = await asyncio.wait_for(anext(conversation.events), _POLL_SECONDS)
            except TimeoutError:
                if tracker.silent:
                    raise NothingSaidError(f"nothing was said in {recording.path}") from None
                if not mic.recording_sent.is_set() or conversation.speaker.playing:
                    news = time.monotonic()
                elif time.monotonic() - news > deadline_seconds:
                    if tracker.turns:
                        break
                    raise ClientError(
                        f"no answer within {deadline_seconds:g} s: {_what_happened(tracker)}"
                    ) from None
                continue
            except StopAsyncIteration:
                raise ClientError("the server ended the conversation") from None
            news = time.monotonic()
            listener(event)
            tracker.take(event)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    if not tracker.turns:
        raise NothingSaidError(f"nothing was said in {recording.path}: no words were recognised")
    return tracker.turns


def _what_happened(tracker: _Tracker) -> str:
    if tracker.awaiting:
        return "the question was heard, and then the server fell silent"
    if tracker.spoken:
        return "speech was noticed, but not its end"
    return "no speech was noticed"


def joined(turns: list[TalkTurn]) -> Samples:
    """What was heard of several turns, one after the other; float32 [samples]."""
    pieces = [turn.heard for turn in turns]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
