"""A conversation that leaves says where the next stream begins."""

from __future__ import annotations

import pytest

from minmo.rpc.health import Readiness
from minmo.v1.conversation_pb2 import Moving
from services.orchestrator import departure as module
from services.orchestrator.departure import Departure
from services.orchestrator.turn_taking import Activity

FRAME = 320


@pytest.fixture
async def departure() -> Departure:
    return Departure(Readiness())


def moving(audio_from: int, audio_from_ms: int, requests_from: int) -> Moving:
    return Moving(audio_from=audio_from, audio_from_ms=audio_from_ms, requests_from=requests_from)


async def test_half_a_second_that_was_heard_is_sent_again(departure: Departure) -> None:
    for sequence in range(200):
        departure.took_audio(sequence, FRAME * (sequence + 1))
    for _ in range(3):
        departure.took_request()
    found = departure.moving(Activity(FRAME * 180, False, 0, 0), 0)
    assert found == moving(180 - 25, (180 - 25) * 20, 3)


async def test_speech_that_was_answered_is_not_sent_again(departure: Departure) -> None:
    for sequence in range(200):
        departure.took_audio(sequence, FRAME * (sequence + 1))
    heard = Activity(FRAME * 180, False, 0, FRAME * 170)
    assert departure.moving(heard, 0).audio_from == 175
    assert departure.moving(heard, FRAME * 179).audio_from == 179


async def test_a_stream_without_audio_begins_at_its_beginning(departure: Departure) -> None:
    assert departure.moving(Activity(0, False, 0, 0), 0) == moving(0, 0, 0)
    departure.took_request()
    assert departure.moving(Activity(0, False, 0, 0), 0) == moving(0, 0, 1)


async def test_audio_that_is_all_dealt_with_is_not_sent_again(departure: Departure) -> None:
    departure.took_audio(0, 16_000)
    heard = Activity(16_000, False, 0, 16_000)
    assert departure.moving(heard, 16_000) == moving(1, 1_000, 0)


async def test_positions_are_right_when_old_audio_is_forgotten(departure: Departure) -> None:
    for sequence in range(1_000):
        departure.took_audio(sequence, FRAME * (sequence + 1))
    heard = Activity(FRAME * 700, False, 0, 0)
    # Of what is known, the oldest: five seconds.
    assert departure.moving(heard, 0) == moving(749, 749 * 20, 0)


async def test_what_is_only_of_use_is_waited_for_but_not_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    readiness = Readiness()
    departure = Departure(readiness)
    assert not departure.is_due
    readiness.mark_draining()
    assert departure.is_due
    assert not departure.is_late
    monkeypatch.setattr(module, "PATIENCE_SECONDS", -1.0)
    assert departure.is_late
