"""How the assistant's audio is sent and virtually played."""

from __future__ import annotations

import pytest

from minmo.v1.conversation_pb2 import AudioOutput
from services.gateway.playout import AFTERPLAY_SECONDS, TRUNCATE_SECONDS, Playout

RATE = 1000


def audio(
    seconds: float, first: int = 0, *, final: bool = False, utterance: str = "u"
) -> AudioOutput:
    return AudioOutput(
        utterance_id=utterance,
        first_sample=first,
        data=bytes(2 * round(seconds * RATE)),
        final=final,
    )


def sent(playout: Playout, now: float) -> float:
    return sum(len(piece.data) / 2 / RATE for piece in playout.due(now))


def test_audio_goes_out_at_once_up_to_the_lead_and_then_as_it_is_played() -> None:
    playout = Playout(RATE, 1.0)
    playout.offer(audio(3.0, final=True))
    assert sent(playout, 0.0) == pytest.approx(1.2, abs=0.01)
    assert playout.wait_seconds(0.0) == pytest.approx(0.2, abs=0.01)
    total = 1.2 + sum(sent(playout, step / 10) for step in range(1, 25))
    assert total == pytest.approx(3.0)
    assert playout.wait_seconds(3.0) is None


def test_audio_of_a_slow_voice_is_never_held_back() -> None:
    playout = Playout(RATE, 1.0)
    for step in range(50):
        playout.offer(audio(0.1, step * 100))
        assert sent(playout, step * 0.2) == pytest.approx(0.1)


def test_played_stands_still_where_audio_is_missing() -> None:
    playout = Playout(RATE, 5.0)
    playout.offer(audio(0.5))
    sent(playout, 10.0)
    assert playout.played("u", 10.2) == pytest.approx(200, abs=1)
    assert playout.played("u", 12.0) == 500
    playout.offer(audio(0.5, 500))
    sent(playout, 12.0)
    assert playout.played("u", 12.3) == pytest.approx(800, abs=1)


def test_the_second_utterance_is_played_after_the_first() -> None:
    playout = Playout(RATE, 5.0)
    playout.offer(audio(1.0, utterance="a", final=True))
    playout.offer(audio(1.0, utterance="b", final=True))
    sent(playout, 0.0)
    assert (playout.played("a", 0.9), playout.played("b", 0.9)) == (900, 0)
    assert playout.played("b", 1.5) == pytest.approx(500, abs=1)


def test_the_end_is_reported_once_a_little_late() -> None:
    playout = Playout(RATE, 5.0)
    playout.offer(audio(1.0, final=True))
    sent(playout, 0.0)
    reports = [report for step in range(40) for report in playout.reports(step / 20)]
    assert [report.finished for report in reports].count(True) == 1
    assert reports[-1].finished
    assert reports[-1].played_samples == 1000
    assert all(report.played_samples < 1000 for report in reports[:-1])
    fresh = Playout(RATE, 5.0)
    fresh.offer(audio(1.0, final=True))
    sent(fresh, 0.0)
    assert not any(report.finished for report in fresh.reports(1.0 + AFTERPLAY_SECONDS - 0.01))


def test_after_a_stop_the_clients_word_counts_and_else_the_clock() -> None:
    for told, expected in ((250, 250), (None, 400), (5000, 1000)):
        playout = Playout(RATE, 5.0)
        playout.offer(audio(1.0))
        sent(playout, 0.0)
        playout.stop("u", 0.4)
        assert playout.reports(0.41) == []
        if told is not None:
            playout.heard_until("u", told)
        (report,) = playout.reports(0.4 + TRUNCATE_SECONDS + 0.01)
        assert (report.played_samples, report.finished) == (expected, True)
        assert playout.reports(5.0) == []


def test_a_stop_makes_room_for_the_next_at_once() -> None:
    playout = Playout(RATE, 5.0)
    playout.offer(audio(4.0))
    sent(playout, 0.0)
    playout.stop("u", 0.5)
    playout.offer(audio(1.0, utterance="v"))
    playout.offer(audio(1.0, 4000))
    assert sent(playout, 0.5) == pytest.approx(1.0)
    assert playout.played("v", 0.8) == pytest.approx(300, abs=1)


def test_of_a_client_that_reports_nothing_is_assumed() -> None:
    playout = Playout(RATE, 5.0)
    playout.client_reports = True
    playout.offer(audio(1.0, final=True))
    sent(playout, 0.0)
    playout.stop("u", 0.4)
    assert playout.reports(9.0) == []
