"""What a client may ask for in a conversation, and the events that follow from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from minmo.audio.opus import LOOK_AHEAD_SECONDS
from minmo.client import (
    Conversation,
    NotConnectedError,
    Recording,
    SessionSettings,
    Target,
    ToolChoice,
    TurnDetection,
    ask,
)
from minmo.client.events import (
    Event,
    Happening,
    Refused,
    SettingsUpdated,
    ToolCall,
    TurnAdded,
    TurnDeleted,
    TurnEvent,
)
from minmo.v1 import common_pb2
from tests.unit.scripted_server import ANSWER_SECONDS, Script, serving, tone


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def conversation(script: Script) -> AsyncIterator[Conversation]:
    async with (
        serving(script) as port,
        Conversation(Target(f"127.0.0.1:{port}"), input_rate_hz=16_000) as conversation,
    ):
        await conversation.receive(10)  # ready
        yield conversation


async def next_event(conversation: Conversation) -> Event | None:
    return await conversation.receive(10)


async def test_a_turn_is_added_and_deleted(conversation, script) -> None:
    added = await conversation.add_turn("assistant", "Hello.")
    assert await next_event(conversation) == TurnAdded(7, "assistant", "Hello.", added)
    deleted = await conversation.delete_turn(7)
    assert await next_event(conversation) == TurnDeleted(7, deleted)
    assert added != deleted
    assert script.requests[0].add_turn.role == common_pb2.ROLE_ASSISTANT


async def test_a_bad_request_is_refused_and_the_conversation_goes_on(conversation) -> None:
    request_id = await conversation.delete_turn(3)
    refused = await next_event(conversation)
    assert refused == Refused("NO_TURN", "there is no such turn", "delete_turn", request_id)
    await conversation.add_turn("user", "Still here?")
    assert isinstance(await next_event(conversation), TurnAdded)


async def test_a_tool_is_called_and_its_result_goes_back(conversation, script) -> None:
    must = ToolChoice(kind=ToolChoice.KIND_REQUIRED)
    asked = await conversation.create_response(
        instructions="Look at the clock.", max_answer_tokens=20, tool_choice=must, text_only=True
    )
    call = await next_event(conversation)
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments_json, call.request_id) == ("clock", '{"city": "Rome"}', asked)
    await conversation.tool_result(call.call_id, "noon")
    result = await next_event(conversation)
    assert isinstance(result, TurnAdded)
    assert (result.role, result.text) == ("tool", "noon")
    response = script.requests[0].create_response
    assert (response.instructions, response.max_answer_tokens) == ("Look at the clock.", 20)
    assert response.text_only and response.tool_choice == must
    assert script.requests[1].tool_result.call_id == "call-1"


async def test_settings_are_changed_on_the_way(conversation) -> None:
    settings = SessionSettings(
        instruct="slowly", turn_detection=TurnDetection(kind=TurnDetection.KIND_CLIENT)
    )
    request_id = await conversation.update_settings(settings)
    assert await next_event(conversation) == SettingsUpdated(settings, request_id)


async def test_the_client_decides_on_turns(conversation, script) -> None:
    request_id = await conversation.clear_input()
    cleared = await next_event(conversation)
    assert isinstance(cleared, TurnEvent)
    assert (cleared.kind, cleared.request_id) == (Happening.INPUT_CLEARED, request_id)
    await conversation.commit_input()
    await conversation.interrupt()
    await next_event(conversation)
    await next_event(conversation)
    kinds = [request.WhichOneof("message") for request in script.requests]
    assert kinds == ["clear_input", "commit_input", "interrupt"]


async def test_nothing_happened_is_a_timeout_that_loses_no_event(conversation) -> None:
    with pytest.raises(TimeoutError):
        await conversation.receive(0.05)
    await conversation.add_turn("user", "Now.")
    assert isinstance(await next_event(conversation), TurnAdded)


async def test_a_request_without_a_server_is_not_lost_silently(script) -> None:
    async with serving(script) as port:
        conversation = Conversation(
            Target(f"127.0.0.1:{port}"), input_rate_hz=16_000, reconnect_seconds=20
        )
        await conversation.__aenter__()
    try:
        while conversation.connected:
            await asyncio.sleep(0.01)
        with pytest.raises(NotConnectedError, match=r"being looked for\): `text` was not sent"):
            await conversation.send_text("Hello?")
    finally:
        await conversation.__aexit__(None, None, None)


async def test_a_request_after_the_end_is_refused_here(conversation) -> None:
    await conversation.finish()
    with pytest.raises(NotConnectedError, match="was finished"):
        await conversation.create_response()
    assert await next_event(conversation) is None


async def test_opus_both_ways_is_the_same_conversation(script) -> None:
    sound = np.concatenate((tone(300, 0.4, 16_000), np.zeros(1600, np.float32)))
    question = Recording(Path("question.wav"), sound, 16_000)
    async with (
        serving(script) as port,
        Conversation(
            Target(f"127.0.0.1:{port}"), input_rate_hz=16_000, output_rate_hz=24_000, codec="opus"
        ) as conversation,
    ):
        (turn,) = await asyncio.wait_for(ask(conversation, question), 15)
    assert script.configs[0].input_format.encoding == common_pb2.AUDIO_ENCODING_OPUS
    assert script.configs[0].output_format.encoding == common_pb2.AUDIO_ENCODING_OPUS
    assert all(len(packet) == 320 for packet in script.audio)
    # 0.3 s and what the codec delays them, in whole packets.
    assert len(turn.heard) == 16 * 480
    late = round(LOOK_AHEAD_SECONDS * 24_000)
    expected = tone(600, ANSWER_SECONDS, 24_000)
    assert np.corrcoef(expected, turn.heard[late : late + len(expected)])[0, 1] > 0.9
    assert turn.generated_text == "It is this."


async def test_what_waits_for_a_whole_packet_is_sent_at_the_end(script) -> None:
    async with (
        serving(script) as port,
        Conversation(Target(f"127.0.0.1:{port}"), input_rate_hz=16_000, codec="opus") as one,
    ):
        await one.send_audio(np.full(330, 0.01, np.float32))
        await one.finish()
        async for _ in one:
            pass
    assert len(script.audio) == 2
