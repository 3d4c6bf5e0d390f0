"""Any process may die at any time: the conversation goes on, and no finished turn is lost."""

from __future__ import annotations

import asyncio

import pytest

from minmo.client import Conversation, Recording, Target, sessions
from minmo.client.events import Event, Happening, Reconnected, TurnEvent, TurnReport
from minmo.client.microphone import Microphone
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
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP


async def converse_through(
    stack: Stack, target: Target, name: str, when: Happening
) -> tuple[list[Event], conversation_pb2.Session, TurnReport]:
    """A finished turn, then a question aloud in whose middle a process is killed, then one more."""
    question = Recording.read(QUESTION)
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("What is the capital of France?")
        await collect(conversation, TurnReport)
        microphone = Microphone(conversation, question, 1.0)
        speaking = asyncio.create_task(microphone.run())
        events = await collect(conversation, when)
        await stack.kill(name)
        events += await collect(conversation, TurnReport, 90)
        report = events[-1]
        assert isinstance(report, TurnReport)
        await stack.wait_ready(name)
        speaking.cancel()
        await conversation.send_text("What is the capital of Italy?")
        await collect(conversation, TurnReport)
        session = await sessions.get_session(target, conversation.session_id)
    return events, session, report


@pytest.mark.parametrize("name", ["triton", "llm", "voice_decoder"])
async def test_an_answer_survives_the_death_of_a_service(
    stack: Stack, target: Target, name: str
) -> None:
    _, session, report = await converse_through(stack, target, name, Happening.USER_TURN_ENDED)
    assert report.outcome == "completed"
    assert normal(report.heard_text) == normal(report.generated_text)
    assert [turn.role for turn in session.turns] == [2, 3] * 3
    # The same question gets the same answer, whoever gave it: nothing was lost or said twice.
    assert session.turns[3].text == report.heard_text


async def test_an_answer_is_heard_once_when_the_voice_dies_in_its_middle(
    stack: Stack, target: Target
) -> None:
    settings = conversation_pb2.SessionSettings(
        system_prompt="You tell stories.", max_answer_tokens=40
    )
    async with Conversation(
        target, input_rate_hz=16_000, settings=settings, speed=4
    ) as conversation:
        await conversation.send_text("Tell me a story about a ship.")
        await collect(conversation, Happening.ASSISTANT_STARTED)
        await stack.kill("voice_decoder")
        report = (await collect(conversation, TurnReport, 120))[-1]
        assert isinstance(report, TurnReport)
        heard = conversation.speaker.heard(report.utterance_id)
    assert report.outcome == "completed"
    assert word_error_rate(report.generated_text, await recognise(target, heard, 24_000)) <= 0.3


async def test_listening_survives_the_death_of_the_encoder(stack: Stack, target: Target) -> None:
    events, session, report = await converse_through(
        stack, target, "encoder", Happening.USER_SPEECH_STARTED
    )
    happened = [event.kind for event in events if isinstance(event, TurnEvent)]
    # Told only where it takes long.
    assert (Happening.RECOVERING in happened) == (Happening.RECOVERED in happened)
    assert report.outcome == "completed"
    # The new encoder heard the question from its first word on.
    assert word_error_rate(QUESTION_TEXT, session.turns[2].text) <= 0.2


async def test_a_dead_orchestrator_loses_no_finished_turn_and_answers_the_open_one(
    stack: Stack, target: Target
) -> None:
    events, session, report = await converse_through(
        stack, target, "orchestrator", Happening.ASSISTANT_STARTED
    )
    assert any(isinstance(event, Reconnected) for event in events)
    assert report.outcome in ("completed", "interrupted")
    assert session.turns[0].text
    assert session.turns[1].outcome == conversation_pb2.TURN_OUTCOME_COMPLETED
    assert word_error_rate(QUESTION_TEXT, session.turns[2].text) <= 0.3
    assert session.turns[-1].role == 3
    assert session.turns[-1].outcome == conversation_pb2.TURN_OUTCOME_COMPLETED


async def test_a_restarted_redis_has_every_finished_turn(stack: Stack, target: Target) -> None:
    _, session, report = await converse_through(stack, target, "redis", Happening.USER_TURN_ENDED)
    assert report.outcome == "completed"
    assert [turn.role for turn in session.turns] == [2, 3] * 3


async def test_an_orchestrator_that_is_told_to_stop_hands_its_sessions_over(
    stack: Stack, target: Target
) -> None:
    import signal

    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("What is the capital of France?")
        await collect(conversation, TurnReport)
        before = stack.pids["orchestrator"]
        stack.signal("orchestrator", signal.SIGTERM)
        # It goes at once, as nobody speaks; the client finds its successor by itself.
        async with asyncio.timeout(30):
            while stack.pids.get("orchestrator") in (before, None):
                await asyncio.sleep(0.05)
        await stack.wait_ready("orchestrator")
        await conversation.send_text("What is the capital of Italy?")
        await collect(conversation, TurnReport)
        session = await sessions.get_session(target, conversation.session_id)
    assert len(session.turns) == 4
