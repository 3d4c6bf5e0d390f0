"""Who spoke when in a conversation, as its client saw and heard it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minmo import pictures
from minmo.client.events import (
    AudioReceived,
    Disconnected,
    Event,
    Happening,
    Reconnected,
    StopPlayback,
    TurnEvent,
)
from minmo.pictures import Mark, Stretch

USER, ASSISTANT = "user", "MinMo"

SPEECH = "speech"
BACK_CHANNEL = "speech over an answer that went on"
INTERRUPTION = "speech that stopped an answer"
ANSWER = "answer, as heard"

# Silence within an answer that is drawn, and not taken for jitter.
_GAP_SECONDS = 0.02

_MARKS = {
    Happening.USER_TURN_ENDED: "turn ended",
    Happening.NOTHING_SAID: "no words",
    Happening.RECOVERING: "service lost",
    Happening.RECOVERED: "service back",
}


@dataclass
class _Answer:
    received: int = 0
    stopped: bool = False


class Timeline:
    """Follows the events of a conversation; times are seconds from the first one on.

    The user's speech lies where its audio was sent, an answer where the loudspeaker plays it:
    from its first sample on, one answer after the other, silent where audio came too late.

    Args:
        sent_at: when the audio up to a position (milliseconds) of the stream was sent, on the
            monotonic clock; None if that is not known. `Conversation.sent_at` is one.
        output_rate_hz: rate of the answers.
        speed: how much faster than real time they are played; may be infinite.
    """

    def __init__(
        self, sent_at: Callable[[float], float | None], output_rate_hz: int, speed: float = 1.0
    ) -> None:
        self._sent_at = sent_at
        self._samples_per_second = output_rate_hz * speed
        self._origin: float | None = None
        self._now = 0.0
        self._said: list[Stretch] = []
        self._speaking = False
        self._heard: list[tuple[str, Stretch]] = []
        self._answers: dict[str, _Answer] = defaultdict(_Answer)
        self._plays_until = 0.0
        self._marks: list[Mark] = []

    def __bool__(self) -> bool:
        """Whether anything has happened."""
        return self._origin is not None

    @property
    def stretches(self) -> list[Stretch]:
        """Who spoke when, up to the latest moment that is known; the user's first."""
        said = [replace(stretch) for stretch in self._said]
        if self._speaking:
            said[-1] = replace(said[-1], end=max(self._now, said[-1].start))
        heard = (
            replace(stretch, end=min(stretch.end, self._now))
            for _, stretch in self._heard
            if stretch.start <= self._now
        )
        return [*said, *heard]

    @property
    def marks(self) -> list[Mark]:
        """What was decided, and when the first audio of each answer came, in order of time."""
        return sorted(self._marks, key=lambda mark: mark.at)

    def take(self, event: Event, now_seconds: float) -> None:
        """Takes the next event.

        Args:
            event: of the conversation.
            now_seconds: when it is taken, on the monotonic clock.
        """
        if self._origin is None:
            self._origin = now_seconds
        now = self.advance(now_seconds)
        match event:
            case TurnEvent():
                self._happened(event)
            case AudioReceived():
                self._plays(event)
            case StopPlayback():
                self._stops(event.utterance_id, now)
            case Disconnected():
                self._ends_speech(now)
                self._mark("", "connection lost", now)
            case Reconnected():
                self._mark("", "connection back", now)
            case _:
                pass

    def advance(self, now_seconds: float) -> float:
        """Time passes; returns the seconds since the first event."""
        self._now = max(self._now, self._since(now_seconds))
        return self._now

    def draw(self, path: Path) -> None:
        """Draws it, as SVG or PNG by the file's name; see `minmo.pictures.check`.

        Raises:
            OSError: the file cannot be written.
        """
        pictures.timeline(path, self.stretches, self.marks, title="who spoke when")

    def _happened(self, event: TurnEvent) -> None:
        at = self._since(event.at_seconds)
        match event.kind:
            case Happening.USER_SPEECH_STARTED:
                start = self._position(event)
                self._ends_speech(start)
                over = any(one.start < start < one.end for _, one in self._heard)
                kind = BACK_CHANNEL if over else SPEECH
                self._said.append(Stretch(USER, kind, start, start))
                self._speaking = True
            case Happening.USER_SPEECH_STOPPED:
                self._ends_speech(self._position(event))
            case Happening.USER_TURN_ENDED:
                self._ends_speech(self._position(event))
            case _:
                pass
        if event.kind in _MARKS:
            lane = USER if event.kind in (Happening.USER_TURN_ENDED, Happening.NOTHING_SAID) else ""
            self._mark(lane, _MARKS[event.kind], at)

    def _ends_speech(self, end: float) -> None:
        if self._speaking:
            self._said[-1] = replace(self._said[-1], end=max(end, self._said[-1].start))
        self._speaking = False

    def _plays(self, event: AudioReceived) -> None:
        answer = self._answers[event.utterance_id]
        # What is there already is not played again, as after a connection was lost.
        count = event.first_sample + len(event.samples) - answer.received
        if answer.stopped or count <= 0:
            return
        start = max(self._since(event.at_seconds), self._plays_until)
        self._plays_until = start + count / self._samples_per_second
        if not answer.received:
            self._mark(ASSISTANT, "first audio", start)
        answer.received += count
        if self._heard:
            utterance_id, last = self._heard[-1]
            if utterance_id == event.utterance_id and start - last.end < _GAP_SECONDS:
                self._heard[-1] = (utterance_id, replace(last, end=self._plays_until))
                return
        stretch = Stretch(ASSISTANT, ANSWER, start, self._plays_until)
        self._heard.append((event.utterance_id, stretch))

    def _stops(self, utterance_id: str, now: float) -> None:
        self._answers[utterance_id].stopped = True
        self._heard = [
            (of, replace(one, end=min(one.end, now)) if of == utterance_id else one)
            for of, one in self._heard
            if of != utterance_id or one.start < now
        ]
        self._plays_until = max((one.end for _, one in self._heard), default=0.0)
        self._mark(ASSISTANT, "stopped", now)
        if self._said and self._said[-1].kind == BACK_CHANNEL:
            self._said[-1] = replace(self._said[-1], kind=INTERRUPTION)

    def _mark(self, lane: str, kind: str, at: float) -> None:
        self._marks.append(Mark(lane, kind, at))

    def _position(self, event: TurnEvent) -> float:
        """When the audio that an event is about was sent; when it came, if that is not known."""
        sent = self._sent_at(event.audio_ms)
        return self._since(event.at_seconds if sent is None else sent)

    def _since(self, seconds: float) -> float:
        return max(0.0, seconds - (self._origin or 0.0))
