"""The client of a conversation, against a scripted server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from minmo.client import ClientError, Conversation, NothingSaidError, Recording, Target, ask
from minmo.client.events import Disconnected, Event, Reconnected, TurnReport, UserText
from minmo.client.microphone import FAST
from minmo.rpc.errors import StatusError, resource_exhausted
from minmo.stack.ports import PortReservation
from tests.unit.scripted_server import ANSWER_SECONDS, SILENCE_SECONDS, Script, serving

RATE = 16_000


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def target(script: Script) -> AsyncIterator[Target]:
    async with serving(script) as port:
        yield Target(f"127.0.0.1:{port}")


def recording(*stretches: tuple[float, float]) -> Recording:
    """Stretches of (loudness, seconds)."""
    pieces = [np.full(round(seconds * RATE), level) for level, seconds in stretches]
    return Recording(Path("question.wav"), np.concatenate(pieces).astype(np.float32), RATE)


QUESTION = recording((0.0, 0.1), (0.5, 0.4), (0.0, 0.1))


async def test_a_question_is_answered_and_the_answer_is_what_was_played(target, script) -> None:
    events: list[Event] = []
    async with Conversation(target, input_rate_hz=RATE, output_rate_hz=24_000) as conversation:
        turns = await asyncio.wait_for(ask(conversation, QUESTION, listener=events.append), 15)
    assert len(turns) == 1
    turn = turns[0]
    assert (turn.user_text, turn.generated_text) == ("What is it?", "It is this.")
    assert turn.outcome == "completed"
    assert len(turn.heard) == ANSWER_SECONDS * 24_000
    assert np.allclose(turn.heard, 8000 / 32768, atol=1e-4)
    assert turn.tokens_per_second == pytest.approx(20)
    assert turn.token2wav_ms == 70
    assert any(isinstance(event, UserText) for event in events)
    assert script.configs[0].reports_playback


async def test_latency_is_counted_from_the_last_sample_of_speech(target) -> None:
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        (turn,) = await asyncio.wait_for(ask(conversation, QUESTION), 15)
    assert turn.first_audio_ms == pytest.approx(SILENCE_SECONDS * 1000, abs=80)
    assert turn.network_ms == pytest.approx(turn.first_audio_ms - SILENCE_SECONDS * 1000, abs=25)


async def test_playback_is_reported_as_it_goes_on(target, script) -> None:
    async with Conversation(target, input_rate_hz=RATE, output_rate_hz=24_000) as conversation:
        await asyncio.wait_for(ask(conversation, QUESTION), 15)
    played = [playback.played_samples for playback in script.playbacks]
    assert played == sorted(played)
    assert len(played) >= 3
    assert script.playbacks[-1].finished
    assert played[-1] == ANSWER_SECONDS * 24_000


async def test_fast_is_faster_than_the_recording(target) -> None:
    long = recording((0.0, 2.0), (0.5, 1.0), (0.0, 1.0))
    loop = asyncio.get_running_loop()
    async with Conversation(target, input_rate_hz=RATE, speed=FAST) as conversation:
        began = loop.time()
        await asyncio.wait_for(ask(conversation, long, speed=FAST), 15)
    assert loop.time() - began < 2


async def test_a_recording_with_a_pause_is_two_turns(target) -> None:
    pause = recording((0.5, 0.3), (0.0, 0.9), (0.5, 0.3), (0.0, 0.1))
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        turns = await asyncio.wait_for(ask(conversation, pause), 15)
    assert len(turns) == 2
    for turn in turns:
        assert turn.first_audio_ms == pytest.approx(SILENCE_SECONDS * 1000, abs=80)


async def test_silence_is_nothing_said(target) -> None:
    quiet = recording((0.0001, 0.2))
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        with pytest.raises(NothingSaidError, match=r"nothing was said in question\.wav"):
            await asyncio.wait_for(ask(conversation, quiet, speed=5), 15)


async def test_noise_without_words_is_nothing_said(target, script) -> None:
    script.words = False
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        with pytest.raises(NothingSaidError, match="no words were recognised"):
            await asyncio.wait_for(ask(conversation, QUESTION), 15)


async def test_a_server_that_does_not_answer_is_given_up(target, script) -> None:
    script.answer = False
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        with pytest.raises(ClientError, match=r"no answer within 0\.5 s: the question was heard"):
            await asyncio.wait_for(ask(conversation, QUESTION, deadline_seconds=0.5), 15)


async def test_a_refusal_is_raised_with_its_reason(target, script) -> None:
    script.refusal = resource_exhausted("too many sessions", limit="3 sessions")
    with pytest.raises(StatusError) as refused:
        async with Conversation(target, input_rate_hz=RATE):
            pass
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.metadata["limit"] == "3 sessions"


async def test_no_server_is_unavailable_at_once() -> None:
    reservation = PortReservation()
    with pytest.raises(StatusError) as missing:
        async with Conversation(Target(reservation.address), input_rate_hz=RATE):
            pass
    reservation.close()
    assert missing.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_message_that_is_missing_is_noticed(target, script) -> None:
    script.skip_a_number = True
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        with pytest.raises(StatusError, match="message 1 of the stream is missing"):
            await asyncio.wait_for(ask(conversation, QUESTION), 15)


async def test_the_session_goes_on_when_the_server_comes_back(script) -> None:
    async with AsyncExitStack() as client:
        async with serving(script) as port:
            conversation = await client.enter_async_context(
                Conversation(Target(f"127.0.0.1:{port}"), input_rate_hz=RATE)
            )
            session_id = conversation.session_id
            await asyncio.wait_for(ask(conversation, QUESTION), 15)
        events = [await asyncio.wait_for(anext(conversation.events), 10)]
        await conversation.send_audio(np.zeros(320, dtype=np.float32))
        assert conversation.dropped_samples == 320
        async with serving(script, port):
            while not isinstance(events[-1], Reconnected):
                events.append(await asyncio.wait_for(anext(conversation.events), 10))
            turns = await asyncio.wait_for(ask(conversation, QUESTION), 15)
            await client.aclose()
    assert any(isinstance(event, Disconnected) for event in events)
    assert turns[0].session_id == session_id
    assert script.configs[1].session_id == session_id
    assert script.configs[1].take_over


async def test_a_server_that_stays_away_ends_the_conversation(script) -> None:
    async with AsyncExitStack() as client:
        async with serving(script) as port:
            conversation = await client.enter_async_context(
                Conversation(Target(f"127.0.0.1:{port}"), input_rate_hz=RATE, reconnect_seconds=0.3)
            )

        async def read() -> None:
            async for _ in conversation:
                pass

        with pytest.raises(StatusError, match=r"did not come back within 0\.3 s"):
            await asyncio.wait_for(read(), 15)


async def test_the_events_end_after_finish(target) -> None:
    async with Conversation(target, input_rate_hz=RATE) as conversation:
        await conversation.finish()

        async def read() -> list[Event]:
            return [event async for event in conversation]

        events = await asyncio.wait_for(read(), 10)
    assert not any(isinstance(event, TurnReport) for event in events)


async def test_stopping_to_speak_in_the_middle_of_a_frame_breaks_nothing(target) -> None:
    frame = np.zeros(320, np.float32)
    async with Conversation(target, input_rate_hz=16_000) as conversation:
        for _ in range(50):
            sending = asyncio.create_task(conversation.send_audio(frame))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        turns = await asyncio.wait_for(ask(conversation, QUESTION), 15)
    assert len(turns) == 1
