"""Who spoke when: user's speech where it was sent, answers where they were heard."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minmo.client.events import (
    AudioReceived,
    Disconnected,
    Event,
    Happening,
    Ready,
    StopPlayback,
    TurnEvent,
)
from minmo.client.timeline import (
    ANSWER,
    BACK_CHANNEL,
    INTERRUPTION,
    SPEECH,
    Timeline,
)

RATE = 1000
BEGAN = 100.0


class Talk:
    """A timeline whose stream began when the conversation did; times are seconds from then."""

    def __init__(self, speed: float = 1.0) -> None:
        self.timeline = Timeline(lambda position_ms: BEGAN + position_ms / 1000, RATE, speed)
        self._take(Ready("s", False, 0, "cascade"), 0.0)

    def event(self, kind: Happening, at: float, position: float | None = None) -> None:
        """Something that comes `at` a time about a position; without one about that time."""
        audio_ms = round(1000 * (at if position is None else position))
        self._take(TurnEvent(kind, audio_ms, "", "", BEGAN + at), at)

    def speak(self, start: float, end: float) -> None:
        self.event(Happening.USER_SPEECH_STARTED, start)
        self.event(Happening.USER_SPEECH_STOPPED, end + 0.2, position=end)

    def audio(self, utterance_id: str, first: float, seconds: float, at: float) -> None:
        samples = np.zeros(round(seconds * RATE), np.float32)
        first_sample = round(first * RATE)
        event = AudioReceived(utterance_id, first_sample, samples, (), False, BEGAN + at)
        self._take(event, at)

    def stop(self, utterance_id: str, at: float) -> None:
        self._take(StopPlayback(utterance_id), at)

    def lose(self, at: float) -> None:
        self._take(Disconnected("gone"), at)

    def _take(self, event: Event, at: float) -> None:
        self.timeline.take(event, BEGAN + at)

    def stretches(self, until: float) -> list[tuple[str, str, float, float]]:
        self.timeline.advance(BEGAN + until)
        return [
            (one.lane, one.kind, pytest.approx(one.start), pytest.approx(one.end))
            for one in self.timeline.stretches
        ]

    def marks(self) -> list[tuple[str, str, float]]:
        return [(mark.lane, mark.kind, pytest.approx(mark.at)) for mark in self.timeline.marks]


def test_a_question_and_its_answer() -> None:
    talk = Talk()
    talk.speak(1.0, 2.0)
    talk.event(Happening.USER_TURN_ENDED, 2.5, position=2.0)
    # Sent faster than it is heard.
    talk.audio("a", 0, 1.0, at=3.0)
    talk.audio("a", 1.0, 1.0, at=3.1)
    assert talk.stretches(until=9.0) == [
        ("user", SPEECH, 1.0, 2.0),
        ("MinMo", ANSWER, 3.0, 5.0),
    ]
    assert talk.marks() == [("user", "turn ended", 2.5), ("MinMo", "first audio", 3.0)]


def test_audio_that_comes_late_is_a_silence_and_what_came_before_is_not_heard_again() -> None:
    talk = Talk()
    talk.audio("a", 0, 1.0, at=1.0)
    talk.audio("a", 0, 1.0, at=1.5)
    talk.audio("a", 0.5, 1.0, at=3.0)
    assert talk.stretches(until=9.0) == [
        ("MinMo", ANSWER, 1.0, 2.0),
        ("MinMo", ANSWER, 3.0, 3.5),
    ]


def test_who_is_not_stopped_by_speech_hears_a_back_channel() -> None:
    talk = Talk()
    talk.audio("a", 0, 4.0, at=1.0)
    talk.speak(2.0, 2.3)
    assert talk.stretches(until=9.0)[0] == ("user", BACK_CHANNEL, 2.0, 2.3)


def test_speech_that_stops_an_answer_is_an_interruption_and_cuts_it() -> None:
    talk = Talk()
    talk.audio("a", 0, 4.0, at=1.0)
    talk.speak(1.5, 1.6)
    talk.event(Happening.USER_SPEECH_STARTED, 2.0)
    talk.stop("a", at=2.2)
    # On its way when it was stopped.
    talk.audio("a", 4.0, 1.0, at=2.3)
    talk.event(Happening.USER_SPEECH_STOPPED, 3.2, position=3.0)
    talk.audio("b", 0, 1.0, at=3.5)
    assert talk.stretches(until=9.0) == [
        ("user", BACK_CHANNEL, 1.5, 1.6),
        ("user", INTERRUPTION, 2.0, 3.0),
        ("MinMo", ANSWER, 1.0, 2.2),
        ("MinMo", ANSWER, 3.5, 4.5),
    ]
    assert ("MinMo", "stopped", 2.2) in talk.marks()


def test_what_goes_on_is_drawn_up_to_now() -> None:
    talk = Talk()
    talk.audio("a", 0, 60.0, at=1.0)
    talk.event(Happening.USER_SPEECH_STARTED, 2.0)
    assert talk.stretches(until=3.0) == [
        ("user", BACK_CHANNEL, 2.0, 3.0),
        ("MinMo", ANSWER, 1.0, 3.0),
    ]


def test_speech_ends_where_the_connection_does() -> None:
    talk = Talk()
    talk.event(Happening.USER_SPEECH_STARTED, 1.0)
    talk.lose(at=2.0)
    assert talk.stretches(until=9.0) == [("user", SPEECH, 1.0, 2.0)]
    assert talk.marks() == [("", "connection lost", 2.0)]


def test_a_position_that_nobody_remembers_is_now() -> None:
    timeline = Timeline(lambda _: None, RATE)
    started = TurnEvent(Happening.USER_SPEECH_STARTED, 70, "", "", BEGAN + 2)
    timeline.take(Ready("s", False, 0, "cascade"), BEGAN)
    timeline.take(started, BEGAN + 2.1)
    assert timeline.stretches[0].start == pytest.approx(2.0)


def test_infinite_speed_hears_all_at_once() -> None:
    talk = Talk(speed=math.inf)
    talk.audio("a", 0, 5.0, at=1.0)
    assert talk.stretches(until=9.0) == [("MinMo", ANSWER, 1.0, 1.0)]


def test_it_is_drawn(tmp_path: Path) -> None:
    assert not Timeline(lambda _: None, RATE)
    talk = Talk()
    assert talk.timeline
    talk.speak(1.0, 2.0)
    talk.audio("a", 0, 1.0, at=3.0)
    talk.timeline.advance(BEGAN + 5)
    talk.timeline.draw(tmp_path / "talk.svg")
    text = (tmp_path / "talk.svg").read_text()
    assert all(f">{word}</text>" in text for word in ("user", "MinMo", SPEECH, "first audio"))
