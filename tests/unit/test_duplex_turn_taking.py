"""Who has the floor, told by the full-duplex predictor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minmo.model.operating_points import OperatingPoint
from minmo.settings import OrchestratorSettings
from minmo.v1.conversation_pb2 import TurnDetection as TurnDetectionProto
from services.orchestrator.duplex_turn_taking import LINGERS_MS, DuplexTurnTaking
from services.orchestrator.manner import turn_taking_of
from services.orchestrator.session_settings import Settings, TurnDetection
from services.orchestrator.turn_taking import (
    Activity,
    ClientTurnTaking,
    Floor,
    FloorState,
    Happened,
    Predicted,
    Probabilities,
    SilenceTurnTaking,
    samples,
)

STEP_MS = 144
LONGEST_MS = 3000
LATE_MS = 800.0
POINTS = (OperatingPoint(0, 0.9, 0.9), OperatingPoint(0.5, 0.6, 0.7), OperatingPoint(1, 0.2, 0.3))
BY_SILENCE = SilenceTurnTaking(end_of_turn_ms=500, barge_in_ms=200)


def decisions(eagerness: float = 0.0, without: SilenceTurnTaking = BY_SILENCE) -> DuplexTurnTaking:
    return DuplexTurnTaking.of(
        POINTS, eagerness, longest_silence_ms=LONGEST_MS, without=without, late_ms=LATE_MS
    )


def said(answer: float, stop: float, age_ms: float = 0.0) -> Predicted:
    return Predicted(Probabilities(answer, stop, 0), age_ms)


@pytest.mark.parametrize(
    ("silence_ms", "predicted", "answers"),
    [
        (100, said(0.61, 0), True),
        (100, said(0.59, 1), False),
        (2900, said(0.59, 1), False),
        (3000, said(0, 0), True),
        (3000, Predicted(), True),
        (400, Predicted(None, LATE_MS), False),
        (600, Predicted(None, LATE_MS), False),
        (600, Predicted(None, LATE_MS + 1), True),
        (400, Predicted(None, LATE_MS + 1), False),
        (600, said(0, 0, LATE_MS + 1), True),
        (400, said(1, 0, LATE_MS + 1), False),
    ],
)
def test_it_answers_when_the_predictor_says_so_or_when_it_is_late(
    silence_ms: float, predicted: Predicted, answers: bool
) -> None:
    assert decisions().answer_now(silence_ms, predicted) is answers


@pytest.mark.parametrize(
    ("overlap_ms", "predicted", "stops"),
    [
        (50, said(0, 0.71), True),
        (5000, said(1, 0.69), False),
        (5000, Predicted(None, LATE_MS), False),
        (200, Predicted(None, LATE_MS + 1), True),
        (180, said(0, 1, LATE_MS + 1), False),
    ],
)
def test_it_stops_when_the_predictor_says_so_or_when_it_is_late(
    overlap_ms: float, predicted: Predicted, stops: bool
) -> None:
    assert decisions().stop_now(overlap_ms, predicted) is stops
    talks_on = decisions(without=SilenceTurnTaking(500, None))
    assert not talks_on.stop_now(overlap_ms, predicted)


def test_an_answer_is_worth_beginning_from_half_of_the_threshold_on() -> None:
    assert decisions().may_answer(said(0.31, 0))
    assert not decisions().may_answer(said(0.29, 1))
    assert not decisions().may_answer(Predicted())


@pytest.mark.parametrize(("eagerness", "threshold"), [(0, 0.6), (0.01, 0.89), (1, 0.2)])
def test_eagerness_moves_from_patient_to_eager(eagerness: float, threshold: float) -> None:
    assert decisions(eagerness).answer_now(0, said(threshold + 0.02, 0))
    assert not decisions(eagerness).answer_now(0, said(threshold - 0.02, 0))


def test_a_session_that_waits_longer_for_silence_waits_as_long_for_the_predictor() -> None:
    patient = decisions(without=SilenceTurnTaking(5000, 200))
    assert not patient.answer_now(4000, said(0, 0))
    assert patient.answer_now(5000, said(0, 0))


class Talk:
    """Voice activity every 16 ms, and a predictor that answers each step, as in a conversation."""

    def __init__(self, **limits: float) -> None:
        self.floor = Floor(decisions(), pause_ms=200, max_turn_ms=limits.get("max_turn_ms", 1e6))
        self.answer = self.stop = 0.0
        self.silent_predictor = False
        self._ms = 0
        self._start = self._end = 0
        self._spoke = False

    def run(self, ms: int, *, speaking: bool) -> list[Happened]:
        """What happens meanwhile."""
        new: list[Happened] = []
        for _ in range(ms // 16):
            if speaking and not self._spoke:
                self._start = samples(self._ms)
            self._ms += 16
            if speaking:
                self._end = samples(self._ms)
            self._spoke = speaking
            activity = Activity(samples(self._ms), speaking, self._start, self._end)
            new += [event.what for event in self.floor.hear(activity)]
            if self._ms % STEP_MS == 0 and not self.silent_predictor:
                heard = Probabilities(self.answer, self.stop, samples(self._ms))
                new += [event.what for event in self.floor.predict(heard)]
        return new

    def speak(self, ms: int) -> list[Happened]:
        return self.run(ms, speaking=True)

    def wait(self, ms: int) -> list[Happened]:
        return self.run(ms, speaking=False)


def talk_under_an_answer() -> Talk:
    talk = Talk()
    talk.speak(480)
    talk.answer = 1.0
    assert talk.wait(320)[-1] is Happened.TURN_ENDED
    talk.answer = 0.0
    assert talk.floor.state is FloorState.ASSISTANT
    return talk


def test_a_turn_ends_when_the_predictor_says_so_and_not_while_the_user_speaks() -> None:
    talk = Talk()
    talk.answer = 0.9
    assert talk.speak(960) == [Happened.SPEECH_STARTED]
    # It has said so before: the first silence is enough.
    assert talk.wait(16) == [Happened.SPEECH_STOPPED, Happened.TURN_ENDED]


def test_pauses_of_any_length_end_no_turn_until_the_longest() -> None:
    talk = Talk()
    for pause_ms in (512, 1600, 2880):
        talk.speak(640)
        happened = talk.wait(pause_ms)
        assert Happened.TURN_ENDED not in happened
        assert happened.count(Happened.PAUSE) == 1
    talk.speak(640)
    assert Happened.TURN_ENDED not in talk.wait(2992)
    assert talk.wait(16) == [Happened.TURN_ENDED]


def test_a_likely_end_is_told_at_each_step_until_it_is_one() -> None:
    talk = Talk()
    talk.answer = 0.4
    assert Happened.MAY_END not in talk.speak(640)
    assert talk.wait(720).count(Happened.MAY_END) == 5
    talk.answer = 0.7
    assert talk.wait(144).count(Happened.TURN_ENDED) == 1
    assert Happened.MAY_END not in talk.wait(720)


def test_silence_decides_while_the_predictor_says_nothing() -> None:
    talk = Talk()
    talk.silent_predictor = True
    talk.speak(640)
    assert Happened.TURN_ENDED not in talk.wait(480)
    assert Happened.TURN_ENDED in talk.wait(32)
    assert Happened.BARGE_IN not in talk.speak(int(LATE_MS) - 16)
    assert Happened.BARGE_IN in talk.speak(160)


def test_a_predictor_that_comes_back_decides_again() -> None:
    talk = Talk()
    talk.silent_predictor = True
    talk.speak(1600)
    talk.silent_predictor = False
    talk.speak(160)
    assert Happened.TURN_ENDED not in talk.wait(1600)


def test_a_back_channel_leaves_the_assistant_talking() -> None:
    talk = talk_under_an_answer()
    assert Happened.BARGE_IN not in talk.speak(960)
    happened = talk.wait(int(LINGERS_MS) + 64)
    assert happened == [Happened.SPEECH_STOPPED, Happened.BACK_CHANNEL]
    assert talk.floor.state is FloorState.ASSISTANT


def test_speech_over_an_answer_stops_it_when_the_predictor_says_so() -> None:
    talk = talk_under_an_answer()
    talk.speak(288)
    talk.stop = 0.8
    assert talk.speak(144) == [Happened.BARGE_IN]
    assert talk.floor.state is FloorState.USER
    talk.answer = 1.0
    assert Happened.TURN_ENDED in talk.wait(288)


def test_a_short_interruption_may_be_understood_when_it_is_over() -> None:
    talk = talk_under_an_answer()
    talk.speak(160)
    assert talk.wait(304) == [Happened.SPEECH_STOPPED]
    assert talk.floor.state is FloorState.OVERLAP
    talk.stop = 0.9
    assert talk.wait(144)[0] is Happened.BARGE_IN
    assert talk.floor.state is FloorState.USER


def test_what_was_said_of_the_last_turn_is_not_said_of_the_next() -> None:
    talk = talk_under_an_answer()
    talk.floor.predict(Probabilities(1, 1, samples(10_000)))
    assert talk.floor.state is FloorState.ASSISTANT
    talk.silent_predictor = True
    assert talk.speak(320) == [Happened.SPEECH_STARTED]
    # An answer that comes late, to what was heard before, says nothing new.
    talk.floor.predict(Probabilities(0, 0.1, samples(1000)))
    assert talk.floor.predict(Probabilities(0, 1, samples(900))) == []


def test_who_said_something_as_the_answer_ended_is_listened_to() -> None:
    talk = talk_under_an_answer()
    talk.speak(160)
    talk.wait(160)
    talk.floor.assistant_ends()
    assert talk.floor.state is FloorState.USER
    talk.answer = 1.0
    assert Happened.TURN_ENDED in talk.wait(288)


def test_a_microphone_that_goes_off_ends_what_lingers() -> None:
    talk = talk_under_an_answer()
    talk.speak(160)
    talk.wait(160)
    assert [event.what for event in talk.floor.silence()] == [Happened.BACK_CHANNEL]
    assert talk.floor.state is FloorState.ASSISTANT


steps = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(1, 80),
        st.floats(0, 1),
        st.floats(0, 1),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)


@given(steps)
def test_the_floor_is_never_stuck(
    steps: list[tuple[bool, int, float, float, bool, bool]],
) -> None:
    talk = Talk(max_turn_ms=10_000)
    for speaking, length, answer, stop, silent, assistant_ends in steps:
        talk.answer, talk.stop, talk.silent_predictor = answer, stop, silent
        talk.run(length * 16, speaking=speaking)
        if assistant_ends:
            talk.floor.assistant_ends()
    talk.answer = talk.stop = 0.0
    talk.floor.assistant_ends()
    talk.wait(LONGEST_MS + 160)
    talk.floor.assistant_ends()
    assert talk.floor.state is FloorState.QUIET


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        (TurnDetectionProto.KIND_UNSPECIFIED, POINTS, DuplexTurnTaking),
        (TurnDetectionProto.KIND_SEMANTIC, POINTS, DuplexTurnTaking),
        (TurnDetectionProto.KIND_SILENCE, POINTS, SilenceTurnTaking),
        (TurnDetectionProto.KIND_CLIENT, POINTS, ClientTurnTaking),
        (TurnDetectionProto.KIND_UNSPECIFIED, (), SilenceTurnTaking),
        (TurnDetectionProto.KIND_SEMANTIC, (), SilenceTurnTaking),
    ],
)
def test_a_session_chooses_who_decides_among_those_that_are_there(
    kind: int, points: tuple[OperatingPoint, ...], expected: type
) -> None:
    chosen = Settings("", turn_detection=TurnDetection(kind, eagerness=1.0))
    taking, _ = turn_taking_of(chosen, OrchestratorSettings(), points)
    assert type(taking) is expected
    if isinstance(taking, DuplexTurnTaking):
        # Eagerness is a wish of those who ask for the predictor.
        eager = kind == TurnDetectionProto.KIND_SEMANTIC
        assert taking.thresholds == (POINTS[2] if eager else POINTS[1])
        talks_on = replace(chosen.turn_detection, keep_talking=True)
        chosen = replace(chosen, turn_detection=talks_on)
        taking, _ = turn_taking_of(chosen, OrchestratorSettings(), points)
        assert not taking.stop_now(5000, said(1, 1))
