"""Who has the floor, told by voice activity alone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.turn_taking import (
    Activity,
    ClientTurnTaking,
    Floor,
    FloorState,
    Happened,
    Predicted,
    SilenceTurnTaking,
    samples,
)

STEP_MS = 20


def make_floor(max_turn_ms: float = 120_000) -> Floor:
    return Floor(
        SilenceTurnTaking(end_of_turn_ms=500, barge_in_ms=200),
        pause_ms=200,
        max_turn_ms=max_turn_ms,
    )


class Microphone:
    """Voice activity in steps of 20 ms, as the encoder would tell it."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor
        self.ms = 0
        self.start = self.end = 0
        self.was_speaking = False
        self.happened: list[Happened] = []

    def run(self, ms: int, *, speaking: bool) -> list[Happened]:
        """Speaks or is silent for so long; what happened meanwhile."""
        new: list[Happened] = []
        for _ in range(ms // STEP_MS):
            if speaking and not self.was_speaking:
                self.start = samples(self.ms)
            self.ms += STEP_MS
            if speaking:
                self.end = samples(self.ms)
            self.was_speaking = speaking
            activity = Activity(samples(self.ms), speaking, self.start, self.end)
            new += [event.what for event in self.floor.hear(activity)]
        self.happened += new
        return new

    def speak(self, ms: int) -> list[Happened]:
        return self.run(ms, speaking=True)

    def wait(self, ms: int) -> list[Happened]:
        return self.run(ms, speaking=False)


def test_a_turn_ends_after_half_a_second_of_silence() -> None:
    microphone = Microphone(make_floor())
    assert microphone.speak(1000) == [Happened.SPEECH_STARTED]
    assert microphone.wait(480) == [Happened.SPEECH_STOPPED, Happened.PAUSE]
    assert microphone.floor.state is FloorState.USER
    assert microphone.wait(20) == [Happened.TURN_ENDED]
    assert microphone.floor.state is FloorState.ASSISTANT


def test_a_pause_inside_a_turn_does_not_end_it() -> None:
    microphone = Microphone(make_floor())
    microphone.speak(600)
    microphone.wait(400)
    microphone.speak(600)
    assert Happened.TURN_ENDED not in microphone.happened
    microphone.wait(500)
    assert microphone.happened.count(Happened.TURN_ENDED) == 1
    assert microphone.happened.count(Happened.PAUSE) == 2


def test_the_turn_is_told_from_its_first_to_its_last_speech() -> None:
    floor = make_floor()
    microphone = Microphone(floor)
    microphone.wait(1000)
    microphone.speak(600)
    microphone.wait(300)
    microphone.speak(400)
    for _ in range(24):
        microphone.wait(20)
    activity = Activity(samples(microphone.ms + 20), False, microphone.start, microphone.end)
    (event,) = floor.hear(activity)
    assert event.what is Happened.TURN_ENDED
    assert (event.start, event.end) == (samples(1000), samples(2300))


def test_speech_over_the_answer_stops_it_after_200_ms() -> None:
    microphone = Microphone(make_floor())
    microphone.speak(500)
    microphone.wait(500)
    microphone.wait(1000)
    assert microphone.speak(180) == [Happened.SPEECH_STARTED]
    assert microphone.floor.state is FloorState.OVERLAP
    assert microphone.speak(20) == [Happened.BARGE_IN]
    assert microphone.floor.state is FloorState.USER


def test_a_short_sound_over_the_answer_leaves_it_alone() -> None:
    microphone = Microphone(make_floor())
    microphone.speak(500)
    microphone.wait(1500)
    microphone.speak(160)
    assert microphone.wait(1000) == [Happened.SPEECH_STOPPED, Happened.BACK_CHANNEL]
    assert microphone.floor.state is FloorState.ASSISTANT


def test_who_speaks_when_the_answer_ends_has_the_floor() -> None:
    microphone = Microphone(make_floor())
    microphone.speak(500)
    microphone.wait(1500)
    microphone.speak(100)
    microphone.floor.assistant_ends()
    assert microphone.floor.state is FloorState.USER
    microphone.speak(400)
    microphone.wait(500)
    assert microphone.happened.count(Happened.TURN_ENDED) == 2


def test_an_endless_turn_is_answered_at_its_limit() -> None:
    microphone = Microphone(make_floor(max_turn_ms=3000))
    microphone.speak(3000)
    assert Happened.TURN_TOO_LONG in microphone.happened
    # Going on speaking takes the floor again, as any speech over the answer does.
    assert microphone.speak(200) == [Happened.BARGE_IN]
    microphone.speak(3000)
    assert microphone.happened.count(Happened.TURN_TOO_LONG) == 2


def test_a_microphone_that_goes_off_ends_the_turn() -> None:
    floor = make_floor()
    microphone = Microphone(floor)
    microphone.speak(500)
    happened = [event.what for event in floor.silence()]
    assert happened == [Happened.SPEECH_STOPPED, Happened.PAUSE, Happened.TURN_ENDED]
    assert floor.silence() == []


def test_activity_that_comes_again_is_ignored() -> None:
    floor = make_floor()
    microphone = Microphone(floor)
    microphone.speak(500)
    assert floor.hear(Activity(samples(300), False, 0, samples(100))) == []
    assert floor.state is FloorState.USER


def test_where_the_client_decides_voice_activity_ends_no_turn_and_stops_no_answer() -> None:
    floor = Floor(ClientTurnTaking(), pause_ms=200, max_turn_ms=120_000)
    microphone = Microphone(floor)
    microphone.wait(1000)
    microphone.speak(600)
    assert microphone.wait(5000) == [Happened.SPEECH_STOPPED, Happened.PAUSE]
    assert floor.silence() == []
    event = floor.commit(samples(6500))
    assert (event.what, event.start, event.end) == (
        Happened.TURN_ENDED,
        samples(1000),
        samples(1600),
    )
    assert (floor.state, floor.input_start) == (FloorState.QUIET, samples(6500))
    floor.assistant_starts()
    microphone.speak(2000)
    microphone.wait(1000)
    assert Happened.BARGE_IN not in microphone.happened
    assert floor.state is FloorState.ASSISTANT
    # What was said over the answer is part of the next turn.
    event = floor.commit(samples(microphone.ms))
    assert (event.start, event.end) == (samples(6600), samples(8600))
    assert floor.state is FloorState.ASSISTANT


def test_a_turn_that_ends_in_the_middle_of_speech_is_followed_by_another() -> None:
    floor = Floor(ClientTurnTaking(), pause_ms=200, max_turn_ms=120_000)
    microphone = Microphone(floor)
    microphone.speak(600)
    first = floor.commit(samples(600))
    microphone.speak(400)
    assert floor.state is FloorState.USER
    second = floor.commit(samples(1000))
    assert (first.start, first.end) == (0, samples(600))
    assert (second.start, second.end) == (samples(600), samples(1000))


def test_a_turn_without_speech_is_all_that_came() -> None:
    floor = Floor(ClientTurnTaking(), pause_ms=200, max_turn_ms=120_000)
    Microphone(floor).wait(900)
    event = floor.commit(samples(900))
    assert (event.start, event.end) == (0, samples(900))


def test_what_is_cleared_is_in_no_turn() -> None:
    floor = Floor(ClientTurnTaking(), pause_ms=200, max_turn_ms=120_000)
    microphone = Microphone(floor)
    microphone.speak(600)
    microphone.wait(300)
    floor.clear(samples(900))
    assert floor.state is FloorState.QUIET
    microphone.speak(300)
    assert floor.commit(samples(1200)).start == samples(900)


def test_a_user_who_speaks_when_the_client_asks_for_an_answer_keeps_the_turns_start() -> None:
    floor = make_floor()
    microphone = Microphone(floor)
    microphone.wait(100)
    microphone.speak(400)
    floor.assistant_starts()
    assert floor.state is FloorState.OVERLAP
    assert Happened.BARGE_IN in microphone.speak(300)
    assert floor.turn_start == samples(100)


def test_an_answer_may_go_on_under_speech() -> None:
    floor = Floor(SilenceTurnTaking(500, None), pause_ms=200, max_turn_ms=120_000)
    floor.assistant_starts()
    microphone = Microphone(floor)
    assert microphone.speak(3000) == [Happened.SPEECH_STARTED]
    floor.assistant_ends()
    microphone.wait(500)
    assert Happened.TURN_ENDED in microphone.happened


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60), st.booleans()), max_size=40))
def test_the_floor_is_never_stuck(steps: Iterable[tuple[bool, int, bool]]) -> None:
    floor = make_floor(max_turn_ms=10_000)
    microphone = Microphone(floor)
    for speaking, length, assistant_ends in steps:
        microphone.run(length * STEP_MS, speaking=speaking)
        if assistant_ends:
            floor.assistant_ends()
    floor.assistant_ends()
    microphone.wait(600)
    floor.assistant_ends()
    assert floor.state is FloorState.QUIET
    for what, again in zip(microphone.happened, microphone.happened[1:], strict=False):
        if what in (Happened.SPEECH_STARTED, Happened.SPEECH_STOPPED):
            assert what is not again


@pytest.mark.parametrize("silence", [0, 499])
def test_silence_turn_taking_waits_for_its_limit(silence: float) -> None:
    decisions = SilenceTurnTaking(end_of_turn_ms=500, barge_in_ms=200)
    assert not decisions.answer_now(silence, Predicted())
    assert decisions.answer_now(500, Predicted())
    assert decisions.stop_now(200, Predicted())
    assert not decisions.may_answer(Predicted())
