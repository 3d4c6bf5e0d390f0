"""What clients send: what is taken, what is refused, and with which error."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.errors import EventError
from services.gateway.parsing import EVENTS, audio_bytes, parse
from tests.realtime_protocol import Protocol
from tests.unit.gateway_states import Dialogue

TOO_MANY_TOOLS = [{"type": "function", "name": f"t{number}"} for number in range(65)]


def session(**fields: Any) -> dict[str, Any]:
    return {"type": "session.update", "event_id": "e1", "session": fields}


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({}, "missing_required_parameter", "type"),
        ({"type": "no.such"}, "invalid_value", "type"),
        ({"type": ["x"]}, "invalid_value", "type"),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        (session(foo=1), "unknown_parameter", "session.foo"),
        (session(instructions=1), "invalid_type", "session.instructions"),
        (session(instructions="x" * 2001), "string_above_max_length", "session.instructions"),
        (session(tools=TOO_MANY_TOOLS), "array_above_max_length", "session.tools"),
        (session(tools=[{"type": "mcp"}]), "invalid_value", "session.tools[0].type"),
        (session(type="transcription"), "invalid_value", "session.type"),
        (session(output_modalities=["video"]), "invalid_value", "session.output_modalities[0]"),
        (session(max_output_tokens=0), "integer_below_min_value", "session.max_output_tokens"),
        (
            session(audio={"input": {"format": {"type": "audio/flac"}}}),
            "invalid_value",
            "session.audio.input.format.type",
        ),
        (
            session(audio={"input": {"format": {"type": "audio/pcm", "rate": 16000}}}),
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            session(audio={"input": {"turn_detection": {"type": "none"}}}),
            "invalid_value",
            "session.audio.input.turn_detection.type",
        ),
        (
            session(audio={"input": {"turn_detection": {}}}),
            "missing_required_parameter",
            "session.audio.input.turn_detection.type",
        ),
        (
            session(
                audio={
                    "input": {"turn_detection": {"type": "server_vad", "silence_duration_ms": 9}}
                }
            ),
            "integer_below_min_value",
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        (
            {"type": "conversation.item.create", "item": {"type": "message", "role": "user"}},
            "missing_required_parameter",
            "item.content",
        ),
        (
            {"type": "conversation.item.create", "item": {"type": "image"}},
            "invalid_value",
            "item.type",
        ),
        (
            {
                "type": "conversation.item.truncate",
                "item_id": "x",
                "content_index": 1,
                "audio_end_ms": 0,
            },
            "invalid_value",
            "content_index",
        ),
        (
            {"type": "response.create", "response": {"metadata": {"a": 1}}},
            "invalid_type",
            "response.metadata.a",
        ),
    ],
)
def test_a_wrong_field_is_named(event: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(EventError) as raised:
        parse(json.dumps(event))
    assert (raised.value.code, raised.value.param) == (code, param)
    assert raised.value.event_id == event.get("event_id")
    made = raised.value.to_event()["error"]
    assert made["type"] == "invalid_request_error"
    assert len(made["message"]) < 500


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"x"', '{"a": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(EventError) as raised:
        parse(text)
    assert raised.value.code == "invalid_json"


def test_a_large_event_of_many_values_is_refused_before_it_is_read() -> None:
    with pytest.raises(EventError) as raised:
        parse('{"type": "session.update", "session": [' + "1," * 200_000 + "1]}")
    assert raised.value.code == "event_too_complex"
    audio = base64.b64encode(bytes(900_000)).decode()
    assert parse(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))


@pytest.mark.parametrize("encoded", ["a", "ä", "a b=", "====", "ab\n=="])
def test_base64_that_is_none_is_refused(encoded: str) -> None:
    with pytest.raises(EventError) as raised:
        audio_bytes(encoded, "audio")
    assert (raised.value.code, raised.value.param) == ("invalid_value", "audio")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"prompt": {"id": "x"}}, "session.prompt"),
        ({"include": ["item.input_audio_transcription.logprobs"]}, "session.include"),
        ({"audio": {"output": {"speed": 1.5}}}, "session.audio.output.speed"),
    ],
)
def test_settings_that_are_not_supported_are_refused(given: dict[str, Any], param: str) -> None:
    with pytest.raises(EventError) as raised:
        Dialogue().client("session.update", session=given)
    assert (raised.value.code, raised.value.param) == ("unsupported", param)


def test_a_choice_of_a_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(EventError, match="no tool 'clock'"):
        Dialogue().client(
            "session.update", session={"tool_choice": {"type": "function", "name": "clock"}}
        )


def test_settings_come_back_as_they_are_in_force() -> None:
    dialogue = Dialogue(ready=False)
    given = {
        "type": "realtime",
        "model": "any",
        "instructions": "Be kind.",
        "output_modalities": ["text"],
        "max_output_tokens": 5000,
        "audio": {
            "input": {
                "format": {"type": "audio/pcma"},
                "noise_reduction": {"type": "near_field"},
                "transcription": {"model": "whisper-1", "language": "en"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 700},
            },
            "output": {"format": {"type": "audio/pcmu"}, "voice": "marin", "speed": 1.0},
        },
        "tools": [{"type": "function", "name": "clock", "description": "Time."}],
        "tool_choice": "required",
        "minmo": {"instruct": "softly", "seed": 3},
    }
    dialogue.client("session.update", session=given)
    found = dialogue.last("session.updated")["session"]
    assert found["audio"]["input"]["format"] == {"type": "audio/pcma"}
    assert found["audio"]["input"]["noise_reduction"] is None
    assert found["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
    assert found["audio"]["output"] == {
        "format": {"type": "audio/pcmu"},
        "voice": "marin",
        "speed": 1.0,
    }
    assert (found["output_modalities"], found["max_output_tokens"]) == (["text"], 5000)
    made = dialogue.state.config.to_proto()
    assert (made.voice, made.instruct, made.seed) == ("", "softly", 3)
    assert (made.max_answer_tokens, made.end_of_turn_silence_ms, made.text_only) == (
        1024,
        700,
        True,
    )
    assert [tool.name for tool in made.tools] == ["clock"]
    rates = [audio_format.sample_rate_hz for audio_format in dialogue.state.config.audio_formats()]
    assert rates == [8000, 8000]
    # What is not named stays; what is null goes back to its default.
    dialogue.client("session.update", session={"instructions": None, "audio": {"input": {}}})
    found = dialogue.last("session.updated")["session"]
    assert (found["instructions"], found["audio"]["output"]["voice"]) == ("", "marin")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(
    [
        "session",
        "audio",
        "item",
        "response",
        "input",
        "output",
        "format",
        "type",
        "turn_detection",
        "tools",
        "event_id",
        "item_id",
        "content_index",
        "audio_end_ms",
        "metadata",
        "content",
        "role",
        "text",
        "transcript",
        "call_id",
        "instructions",
        "voice",
        "previous_item_id",
        "played_samples",
        "output_modalities",
        "id",
        "name",
        "arguments",
    ]
)
TYPES = st.sampled_from(
    [*EVENTS, "message", "function_call_output", "input_text", "input_audio", "audio/pcm", "user"]
)
FIELDS = st.recursive(
    JSON | TYPES,
    lambda inner: st.dictionaries(NAMES, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(list(EVENTS)), fields=st.dictionaries(NAMES, FIELDS, max_size=6))
def test_whatever_comes_is_carried_out_or_refused(kind: str, fields: dict[str, Any]) -> None:
    dialogue = Dialogue(minmo=True)
    dialogue.question()
    dialogue.assistant_says("One")
    try:
        dialogue.from_client.translate(parse(json.dumps({**fields, "type": kind})))
    except EventError as error:
        assert json.dumps(error.to_event())
        assert error.message
    assert all(json.dumps(event) for event in dialogue.events)


ACTIONS = st.lists(
    st.sampled_from(
        [
            "started",
            "stopped",
            "ended",
            "words",
            "nothing",
            "token",
            "sound",
            "final",
            "stop",
            "report",
            "interrupted",
            "cleared",
            "create",
            "cancel",
            "commit",
            "clear",
            "truncate",
            "delete",
            "lost",
        ]
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_every_response_that_begins_ends_once_in_whatever_order_things_happen(
    actions: list[str],
) -> None:
    dialogue = Dialogue(audio={"input": {"transcription": {"model": "x"}}})
    turn = 0
    for number, action in enumerate(actions):
        utterance = f"u{number // 12}"
        dialogue.now += 0.3
        try:
            match action:
                case "started" | "stopped":
                    dialogue.happens(f"user_speech_{action}", number)
                case "ended":
                    dialogue.happens("user_turn_ended", number)
                case "words":
                    dialogue.user_says("words", turn)
                    turn += 2
                case "nothing":
                    dialogue.happens("nothing_said")
                case "token":
                    dialogue.assistant_says("One", utterance=utterance)
                case "sound" | "final":
                    dialogue.sound(utterance=utterance, final=action == "final")
                case "stop":
                    dialogue.stop(utterance)
                case "report":
                    dialogue.report(utterance=utterance, assistant_turn_index=turn)
                case "interrupted":
                    dialogue.happens("interrupted")
                case "cleared":
                    dialogue.happens("input_cleared")
                case "create" | "cancel":
                    dialogue.client(f"response.{action}")
                case "commit" | "clear":
                    dialogue.client(f"input_audio_buffer.{action}")
                case "truncate" | "delete":
                    item = dialogue.state.items.last_id or "none"
                    more = {"content_index": 0, "audio_end_ms": 1} if action == "truncate" else {}
                    dialogue.client(f"conversation.item.{action}", item_id=item, **more)
                case "lost":
                    dialogue.events += dialogue.from_server.lost()
        except EventError:
            continue
    dialogue.events += dialogue.from_server.lost()
    protocol = Protocol(has_ids=False)
    assert [wrong for event in dialogue.events for wrong in protocol.take(event)] == []
    assert not protocol.open_response
