"""What `minmo bench gateway` makes of what it sees; no gateway runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from minmo.bench.arrivals import RATE_HZ, Arrived
from minmo.bench.gateway import Active, Talking
from minmo.bench.replay import orchestrator as replay
from minmo.bench.replay.orchestrator import Replayed
from minmo.v1.conversation_pb2 import (
    AudioOutput,
    ConverseResponse,
    TurnEvent,
    TurnReport,
    UserText,
)


def answer() -> list[Replayed]:
    """Two seconds of audio that came within 0.1 s, behind a question of 1.5 s."""
    second = bytes(2 * RATE_HZ)
    return [
        Replayed(1.5, ConverseResponse(user_text=UserText(turn_index=0, text="hi", final=True))),
        Replayed(1.6, ConverseResponse(event=TurnEvent(kind=4, audio_ms=1500, utterance_id="u"))),
        Replayed(1.7, ConverseResponse(audio=AudioOutput(utterance_id="u", data=second))),
        Replayed(1.8, ConverseResponse(audio=AudioOutput(utterance_id="u", data=second))),
        Replayed(
            1.9, ConverseResponse(report=TurnReport(utterance_id="u", assistant_turn_index=1))
        ),
    ]


def test_audio_that_comes_in_time_leaves_no_silence() -> None:
    piece = RATE_HZ // 5
    assert Arrived([(1.0, piece), (1.01, piece), (1.4, piece)]).stutter_ms() == pytest.approx(0)


def test_the_longest_silence_within_an_answer_is_its_stutter() -> None:
    piece = RATE_HZ // 5
    late = Arrived([(1.0, piece), (1.25, piece), (1.60, piece), (1.61, piece)])
    assert late.stutter_ms() == pytest.approx(150)
    assert late.samples == 4 * piece
    assert Arrived().stutter_ms() == 0


def test_a_recording_comes_back_as_it_was_written(tmp_path: Path) -> None:
    replay.write(tmp_path / "recording", answer())
    assert replay.read(tmp_path / "recording") == answer()


def test_a_question_comes_when_the_answer_before_was_played() -> None:
    assert replay.cycle_seconds(answer()) == pytest.approx(1.7 + 2 + replay.PAUSE_SECONDS)


def test_later_turns_are_turns_of_their_own() -> None:
    first, third = (list(replay.of_cycle(answer(), cycle)) for cycle in (0, 2))
    shift = 2 * replay.cycle_seconds(answer())
    assert [one.seconds for one in third] == pytest.approx([one.seconds + shift for one in first])
    text, event, audio, _, report = (one.response for one in third)
    assert text.user_text.turn_index == 4
    assert event.event.audio_ms == 1500 + round(1000 * shift)
    assert event.event.utterance_id == audio.audio.utterance_id == report.report.utterance_id
    assert audio.audio.utterance_id != first[2].response.audio.utterance_id
    assert report.report.assistant_turn_index == 5


@pytest.mark.parametrize(
    ("changes", "sustained"),
    [
        ({}, True),
        ({"lost_in": 1}, False),
        ({"lost_out": 1}, False),
        ({"late_in_ms": 101.0}, False),
        ({"stutter_ms": 101.0}, False),
    ],
)
def test_a_lost_or_late_frame_is_too_much(changes: dict[str, float], sustained: bool) -> None:
    values = {"sessions": 10, "lost_in": 0, "lost_out": 0, "late_in_ms": 9.0, "stutter_ms": 5.0}
    rest = {"cpu_share": 0.5, "own_late_ms": 1.0}
    assert Active(**(values | rest | changes)).sustained is sustained  # type: ignore[arg-type]
    assert Talking(2, 0, 900.0, 0, 0.0).sustained
    assert not Talking(2, 0, 900.0, 1, 0.0).sustained
    assert not Talking(2, 1, 900.0, 0, 0.0).sustained
