"""A spoken question comes back as a spoken answer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import grpc
import numpy as np
import pytest
import soundfile

from minmo.audio.resample import resample
from minmo.client import Conversation, Recording, Target, ask, sessions, speech
from minmo.client.events import (
    AssistantText,
    AudioReceived,
    Event,
    Happening,
    StopPlayback,
    TurnEvent,
    TurnReport,
    UserText,
)
from minmo.client.microphone import FAST, Microphone
from minmo.stack.stack import Stack
from minmo.v1 import conversation_pb2
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)

pytestmark = SAME_LOOP

# For what is said to be heard, it need not be answered at length.
BRIEF = conversation_pb2.SessionSettings(max_answer_tokens=3)
LONG = conversation_pb2.SessionSettings(
    system_prompt="You tell long stories in many sentences.", max_answer_tokens=60
)


async def collect(conversation: Conversation, until: object, seconds: float = 60) -> list[Event]:
    """Events up to the first of a kind."""
    events: list[Event] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for event in conversation.events:
                events.append(event)
                if isinstance(until, type) and isinstance(event, until):
                    return events
                if isinstance(event, TurnEvent) and event.kind is until:
                    return events
    told = [event for event in events if not isinstance(event, AudioReceived | AssistantText)]
    raise AssertionError(f"{until} did not come within {seconds:g} s, but {told}")


async def test_a_spoken_question_gets_a_spoken_answer(target: Target) -> None:
    async with Conversation(target, input_rate_hz=16_000) as conversation:
        (turn,) = await ask(conversation, Recording.read(QUESTION))
    assert word_error_rate(QUESTION_TEXT, turn.user_text) <= 0.2
    assert turn.outcome == "completed"
    assert normal(turn.heard_text) == normal(turn.generated_text)
    heard = await recognise(target, turn.heard, 24_000)
    assert word_error_rate(turn.generated_text, heard) <= 0.3
    hops = {span.hop for span in turn.waterfall}
    assert hops >= {"endpointing", "recognise", "prefill", "first_token", "first_audio"}
    session = await sessions.get_session(target, turn.session_id)
    assert [said.text for said in session.turns] == [turn.user_text, turn.heard_text]


async def test_the_conversation_goes_on_in_the_same_session(target: Target) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await ask(conversation, question, speed=FAST)
        await ask(conversation, question, speed=FAST)
        session_id = conversation.session_id
    async with Conversation(
        target, input_rate_hz=16_000, session_id=session_id, speed=4
    ) as conversation:
        await ask(conversation, question, speed=FAST)
    session = await sessions.get_session(target, session_id)
    assert [turn.index for turn in session.turns] == list(range(6))
    assert [turn.role for turn in session.turns] == [2, 3] * 3


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 22_050, 44_100, 48_000])
async def test_any_common_sampling_rate_is_heard(target: Target, rate_hz: int) -> None:
    question = Recording.read(QUESTION)
    samples = resample(question.samples, question.rate_hz, rate_hz)
    async with Conversation(target, input_rate_hz=rate_hz, settings=BRIEF, speed=4) as conversation:
        (turn,) = await ask(conversation, Recording(QUESTION, samples, rate_hz), speed=FAST)
    assert word_error_rate(QUESTION_TEXT, turn.user_text) <= 0.35


async def test_stereo_is_heard(target: Target, tmp_path: Path) -> None:
    question = Recording.read(QUESTION)
    stereo = np.stack([question.samples, 0.5 * question.samples], axis=1)
    soundfile.write(tmp_path / "stereo.flac", stereo, question.rate_hz)
    transcript = await speech.transcribe(target, Recording.read(tmp_path / "stereo.flac"))
    assert word_error_rate(QUESTION_TEXT, transcript.text) <= 0.2


async def test_typed_text_is_answered_aloud(target: Target) -> None:
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("What is the capital of France?")
        events = await collect(conversation, TurnReport)
    report = events[-1]
    assert isinstance(report, TurnReport)
    assert "paris" in report.generated_text.lower()
    audio = [event.samples for event in events if isinstance(event, AudioReceived)]
    assert "paris" in (await recognise(target, np.concatenate(audio), 24_000)).lower()


async def test_speaking_over_the_answer_stops_it_and_history_has_what_was_heard(
    target: Target,
) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(target, input_rate_hz=16_000, settings=LONG) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        events = await collect(conversation, Happening.ASSISTANT_STARTED)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(2.5)  # somebody listens for a while, then interrupts
        microphone = Microphone(conversation, question, 1.0)
        speaking = asyncio.create_task(microphone.run())
        onset = loop.time() + _onset_seconds(question)
        events += await collect(conversation, StopPlayback)
        stopped = loop.time()
        events += await collect(conversation, TurnReport)
        interrupted = events[-1]
        assert isinstance(interrupted, TurnReport)
        events += await collect(conversation, TurnReport)
        answered = events[-1]
        heard = conversation.speaker.heard(interrupted.utterance_id)
        speaking.cancel()
        session_id = conversation.session_id
    # 200 ms of speech are asked for, then the audio stops within 300 ms.
    assert stopped - onset <= 0.2 + 0.3
    assert interrupted.outcome == "interrupted"
    assert interrupted.generated_text.startswith(interrupted.heard_text)
    assert len(interrupted.heard_text) < len(interrupted.generated_text)
    told = await recognise(target, heard, 24_000)
    assert abs(len(normal(told).split()) - len(interrupted.heard_text.split())) <= 3
    session = await sessions.get_session(target, session_id)
    assert session.turns[1].text == interrupted.heard_text
    assert session.turns[1].outcome == conversation_pb2.TURN_OUTCOME_INTERRUPTED
    assert word_error_rate(QUESTION_TEXT, session.turns[2].text) <= 0.3
    assert isinstance(answered, TurnReport)
    assert session.turns[3].text == answered.heard_text


def _onset_seconds(recording: Recording) -> float:
    """Where speech begins in a recording."""
    loud = np.flatnonzero(np.abs(recording.samples) > 0.1 * np.abs(recording.samples).max())
    return float(loud[0]) / recording.rate_hz


async def test_going_on_before_the_answer_began_makes_one_turn_of_both(target: Target) -> None:
    question = Recording.read(QUESTION)
    pause = np.zeros(int(0.55 * question.rate_hz), dtype=np.float32)
    end = int(question.speech_end_ms() * question.rate_hz / 1000)
    start = int(_onset_seconds(question) * question.rate_hz)
    twice = np.concatenate([question.samples[:end], pause, question.samples[start:]])
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await ask(conversation, Recording(QUESTION, twice, question.rate_hz))
        session = await sessions.get_session(target, conversation.session_id)
    assert [turn.role for turn in session.turns] == [2, 3]
    assert normal(session.turns[0].text).count(normal(QUESTION_TEXT).split()[-1]) >= 2


async def test_the_stop_button_stops_the_answer(target: Target) -> None:
    async with Conversation(target, input_rate_hz=16_000, settings=LONG) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        await asyncio.sleep(1.0)  # somebody listens for a while
        await conversation.interrupt()
        report = (await collect(conversation, TurnReport))[-1]
    assert isinstance(report, TurnReport)
    assert report.outcome == "interrupted"
    assert 0 < len(report.heard_text) < len(report.generated_text)


async def test_a_client_that_says_it_is_done_gets_its_answer_to_the_end(target: Target) -> None:
    question = Recording.read(QUESTION)
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        for first in range(0, len(question.samples), 3200):
            await conversation.send_audio(question.samples[first : first + 3200])
        await conversation.finish()
        events = [event async for event in conversation.events]
    reports = [event for event in events if isinstance(event, TurnReport)]
    assert [report.outcome for report in reports] == ["completed"]
    texts = [event.text for event in events if isinstance(event, UserText) and event.final]
    assert word_error_rate(QUESTION_TEXT, texts[-1]) <= 0.2
    assert any(isinstance(event, AudioReceived) and event.final for event in events)


async def test_a_client_that_vanishes_leaves_its_session_in_order(
    target: Target, stack: Stack
) -> None:
    async with Conversation(target, input_rate_hz=16_000, settings=LONG) as conversation:
        await conversation.send_text("Tell me a long story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        session_id = conversation.session_id
    # The next stream may come at once: the one before has let go of the session.
    async with asyncio.timeout(10):
        while (await sessions.get_session(target, session_id)).streaming:
            await asyncio.sleep(0.05)
    async with Conversation(
        target, input_rate_hz=16_000, session_id=session_id, speed=4
    ) as conversation:
        await conversation.send_text("What is the capital of France?")
        report = (await collect(conversation, TurnReport))[-1]
    assert isinstance(report, TurnReport)
    session = await sessions.get_session(target, session_id)
    assert session.turns[-1].text == report.heard_text


async def test_eight_conversations_at_once_are_all_answered(target: Target) -> None:
    async def one(city: str) -> str:
        async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
            await conversation.send_text(f"What is the capital of {city}?")
            report = (await collect(conversation, TurnReport, 120))[-1]
            assert isinstance(report, TurnReport)
            return report.generated_text

    countries = ["France", "Italy", "Spain", "Japan", "China", "Egypt", "Russia", "Germany"]
    capitals = ["paris", "rome", "madrid", "tokyo", "beijing", "cairo", "moscow", "berlin"]
    answers = await asyncio.gather(*(one(country) for country in countries))
    right = [capital in answer.lower() for capital, answer in zip(capitals, answers, strict=True)]
    assert sum(right) >= 6


async def test_a_session_can_be_made_listed_and_deleted(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(stack.addresses["orchestrator"]) as channel:
        from minmo.v1.conversation_pb2_grpc import ConversationServiceStub

        stub = ConversationServiceStub(channel)
        me = (("authorization", "Bearer me"),)
        other = (("authorization", "Bearer other"),)
        made = await stub.CreateSession(conversation_pb2.CreateSessionRequest(), metadata=me)
        session_id = made.session.session_id
        listed = await stub.ListSessions(conversation_pb2.ListSessionsRequest(), metadata=me)
        assert session_id in [session.session_id for session in listed.sessions]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetSession(
                conversation_pb2.GetSessionRequest(session_id=session_id), metadata=other
            )
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        await stub.DeleteSession(
            conversation_pb2.DeleteSessionRequest(session_id=session_id), metadata=me
        )
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await stub.GetSession(
                conversation_pb2.GetSessionRequest(session_id=session_id), metadata=me
            )
        assert gone.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_text_is_spoken(target: Target) -> None:
    text = "The train to Boston leaves at nine in the morning."
    spoken = await speech.say(target, text, rate_hz=16_000)
    assert word_error_rate(text, await recognise(target, spoken.samples, 16_000)) <= 0.2
