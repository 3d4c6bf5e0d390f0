"""What a conversation counts: decisions and regrets, states, and whether audio comes in time."""

from collections.abc import Callable
from typing import get_args

import pytest

from minmo.audio.opus import OpusEncoder
from minmo.rpc import metrics
from minmo.rpc.errors import StatusError
from minmo.v1 import common_pb2
from services.gateway.pings import EVERY_SECONDS, Pings
from services.gateway.playout import Playout
from services.orchestrator.census import Census
from services.orchestrator.codecs import Incoming
from services.orchestrator.decisions import Decisions, regret_wordless
from services.orchestrator.delivery import Delivery
from services.orchestrator.turn_taking import Activity, Floor, SilenceTurnTaking, samples
from services.orchestrator.user_turn import UserTurn

RATE = 16_000
STEP_MS = 32.0


class Counted:
    """What a metric counted since this was made."""

    def __init__(self, metric: object, **labels: str) -> None:
        self._metric = metric.labels(**labels) if labels else metric  # type: ignore[attr-defined]
        self._before = self._now()

    def _now(self) -> float:
        values = {sample.name: sample.value for sample in self._metric._child_samples()}  # type: ignore[attr-defined]
        return float(values.get("_sum", values.get("_total", values.get(""))))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return self._now() - self._before == pytest.approx(other)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return repr(self._now() - self._before)


def decided() -> dict[str, Counted]:
    kinds = get_args(metrics.Decision)
    return {kind: Counted(metrics.TURN_DECISIONS, decision=kind) for kind in kinds}


def regretted() -> dict[str, Counted]:
    kinds = get_args(metrics.Regret)
    return {kind: Counted(metrics.TURN_REGRETS, regret=kind) for kind in kinds}


def listened(*stretches: tuple[str, float]) -> Floor:
    """A conversation in which the user speaks and is silent for so many milliseconds."""
    floor = Floor(SilenceTurnTaking(500, 200), pause_ms=200, max_turn_ms=10_000)
    decisions = Decisions()
    now, start, end = 0, 0, 0
    for kind, length_ms in stretches:
        until = now + samples(length_ms)
        if kind == "speech":
            start = now
        while now < until:
            now += samples(STEP_MS)
            end = now if kind == "speech" else end
            for event in floor.hear(Activity(now, kind == "speech", start, end)):
                decisions.note(event, floor.last.end)
    return floor


def test_a_pause_that_is_waited_for_and_an_end_are_decisions() -> None:
    counted, wrong = decided(), regretted()
    listened(("speech", 1000), ("silence", 300), ("speech", 800), ("silence", 800))
    assert counted == dict.fromkeys(counted, 0) | {"wait": 1, "answer_now": 1}
    assert wrong == dict.fromkeys(wrong, 0)


def test_a_user_who_goes_on_within_a_second_was_answered_too_early() -> None:
    counted, wrong = decided(), regretted()
    listened(("speech", 1000), ("silence", 900), ("speech", 800))
    assert counted["stop"] == 1
    assert wrong == dict.fromkeys(wrong, 0) | {"answered_too_early": 1}


def test_a_user_who_speaks_later_only_takes_the_floor() -> None:
    counted, wrong = decided(), regretted()
    listened(("speech", 1000), ("silence", 3000), ("speech", 800))
    assert counted["stop"] == 1
    assert wrong == dict.fromkeys(wrong, 0)


def test_a_back_channel_is_regretted_if_the_floor_is_taken_right_behind_it() -> None:
    counted, wrong = decided(), regretted()
    listened(
        *(("speech", 1000), ("silence", 3000), ("speech", 128), ("silence", 400), ("speech", 800))
    )
    assert (counted["back_channel"], counted["stop"]) == (1, 1)
    assert wrong == dict.fromkeys(wrong, 0) | {"ignored_too_early": 1}


def test_who_speaks_for_too_long_is_answered_at_the_limit() -> None:
    counted = decided()
    listened(("speech", 11_000))
    assert counted["answer_at_limit"] == 1
    assert counted["answer_now"] == 0


def test_a_turn_that_the_client_ends_is_the_clients_decision() -> None:
    counted = decided()
    Decisions().client_ended()
    assert counted["answer_for_client"] == 1


@pytest.mark.parametrize(
    ("turn", "regret"),
    [
        (UserTurn(0), "turn_without_words"),
        (UserTurn(0, took_floor=True), "stopped_for_nothing"),
        (UserTurn(0, ended_by_client=True), None),
    ],
)
def test_a_turn_without_words_was_none(turn: UserTurn, regret: str | None) -> None:
    wrong = regretted()
    regret_wordless(turn)
    assert wrong == dict.fromkeys(wrong, 0) | ({regret: 1} if regret else {})


def test_a_session_is_counted_under_one_state_at_a_time() -> None:
    counted = {state: Counted(metrics.SESSIONS, state=state) for state in ("idle", "speaking")}
    census = Census()
    opened = Counted(metrics.SESSIONS_OPEN)
    with census:
        assert (opened, counted["idle"]) == (1, 1)
        census.is_now("speaking")
        census.is_now("speaking")
        assert (opened, counted["idle"], counted["speaking"]) == (1, 0, 1)
    assert (opened, counted["idle"], counted["speaking"]) == (0, 0, 0)


def test_audio_that_comes_before_it_is_played_is_not_late() -> None:
    late, sent = Counted(metrics.AUDIO_OUT_LATE), Counted(metrics.AUDIO_OUT)
    delivery = Delivery(RATE)
    for second in range(3):
        delivery.sends(second * RATE, RATE, 10.0 + 0.5 * second)
    assert late == 0
    assert sent == 150


def test_audio_that_comes_after_it_had_to_be_played_is_late_by_what_is_missing() -> None:
    late, gap = Counted(metrics.AUDIO_OUT_LATE), Counted(metrics.AUDIO_OUT_GAP)
    delivery = Delivery(RATE)
    delivery.sends(0, RATE, 10.0)
    delivery.sends(RATE, RATE, 11.1)
    assert late == 5
    assert gap == 0.1
    # From here on it is played 0.1 s later.
    delivery.sends(2 * RATE, RATE, 12.1)
    assert late == 5
    delivery.sends(3 * RATE, RATE // 50, 14.1)
    assert late == 6, "no more can be late than there is"
    assert gap == 1.1


def test_an_answer_that_another_voice_goes_on_with_is_late_by_the_time_between() -> None:
    late = Counted(metrics.AUDIO_OUT_LATE)
    delivery = Delivery(RATE)
    delivery.sends(5 * RATE, RATE, 10.0)
    delivery.sends(6 * RATE, RATE, 11.04)
    assert late == 2


def test_a_client_that_has_played_all_of_an_unfinished_answer_has_stalled() -> None:
    stalls, seconds = Counted(metrics.STALLS), Counted(metrics.STALL_SECONDS)
    delivery = Delivery(RATE)
    delivery.played(0, 9.0)
    delivery.sends(0, RATE, 10.0)
    delivery.played(RATE // 2, 10.6)
    delivery.played(RATE, 11.2)
    delivery.played(RATE, 11.4)
    assert stalls == 0, "nobody knows yet whether there is more"
    delivery.sends(RATE, RATE, 11.7)
    assert (stalls, seconds) == (1, 0.5)


def test_the_gateway_follows_the_playback_of_clients_that_do_not_report_it() -> None:
    from minmo.v1.conversation_pb2 import AudioOutput

    def offer(playout: Playout, first: int, now: float) -> None:
        playout.offer(AudioOutput(utterance_id="u1", first_sample=first, data=bytes(2 * RATE)))
        assert list(playout.due(now))

    stalls, seconds = Counted(metrics.STALLS), Counted(metrics.STALL_SECONDS)
    playout = Playout(RATE, 8.0)
    offer(playout, 0, 10.0)
    offer(playout, RATE, 10.5)
    assert stalls == 0
    offer(playout, 2 * RATE, 12.25)
    assert (stalls, seconds) == (1, 0.25)


def audio_format(encoding: int) -> common_pb2.AudioFormat:
    return common_pb2.AudioFormat(encoding=encoding, sample_rate_hz=RATE, channels=1)  # type: ignore[arg-type]


def test_audio_of_the_user_is_counted_in_frames() -> None:
    heard = Counted(metrics.AUDIO_IN)
    incoming = Incoming(audio_format(common_pb2.AUDIO_ENCODING_PCM_S16LE), max_seconds=1)
    incoming.pcm(bytes(640))
    incoming.pcm(bytes(64))
    assert heard == 1.1


def test_audio_that_is_none_and_packets_that_were_lost_are_lost_frames() -> None:
    refused = Counted(metrics.AUDIO_IN_LOST, reason="refused")
    concealed = Counted(metrics.AUDIO_IN_LOST, reason="concealed")
    heard = Counted(metrics.AUDIO_IN)
    incoming = Incoming(audio_format(common_pb2.AUDIO_ENCODING_OPUS), max_seconds=1)
    (packet, *_) = OpusEncoder(RATE).encode(tone())
    incoming.pcm(packet)
    incoming.pcm(b"")
    with pytest.raises(StatusError):
        incoming.pcm(bytes(2000))
    assert (heard, concealed, refused) == (1, 1, 1)


def tone() -> object:
    import numpy as np

    return np.sin(np.arange(RATE, dtype=np.float32) / 10)


def test_the_way_to_a_client_is_timed_by_its_pongs() -> None:
    took = Counted(metrics.HOP_CLIENT)
    pings = Pings()
    assert pings.due(10.0)
    assert not pings.due(10.1)
    first = pings.payload(10.2)
    pings.answered(b"", 10.3)
    assert took == 0, "the library's own pings have no payload"
    pings.answered(first, 10.25)
    pings.answered(first, 10.9)
    assert took == 0.05
    assert pings.due(10.0 + EVERY_SECONDS)
    pings.payload(20.0)
    pings.answered(first, 20.1)
    assert took == 0.05, "an answer to a ping that was given up"


@pytest.mark.parametrize("count", [metrics.count_turn, metrics.count_decision])
def test_counting_takes_the_words_of_the_catalogue(count: Callable[[str], None]) -> None:
    words = metrics.TurnOutcome if count is metrics.count_turn else metrics.Decision
    for word in get_args(words):
        count(word)
