"""The Realtime protocol and the orchestrator's messages, each in terms of the other."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, Refused, TurnDetection
from services.gateway.audio_input import pcm_of
from services.gateway.errors import EventError
from tests.unit.gateway_states import SECOND, Dialogue

QUESTION = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.completed",
    "response.created",
]
BEGUN = [
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
ENDED = [
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
TRANSCRIBES: dict[str, Any] = {"audio": {"input": {"transcription": {"model": "any"}}}}
BY_CLIENT: dict[str, Any] = {
    "audio": {"input": {"transcription": {"model": "any"}, "turn_detection": None}}
}
TOOL = {"type": "function", "name": "clock", "parameters": {"type": "object"}}


def error_of(dialogue: Dialogue, kind: str, **fields: Any) -> EventError:
    with pytest.raises(EventError) as raised:
        dialogue.client(kind, **fields)
    assert not dialogue.requests
    return raised.value


def kind_of(request: ConverseRequest) -> str | None:
    return request.WhichOneof("message")


# --- spoken turns


def test_a_question_and_its_answer_make_the_events_of_the_protocol_in_order() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.question("What is it?")
    dialogue.assistant_says("It", " is")
    dialogue.happens("assistant_started", utterance_id="u1", read_count=40)
    dialogue.sound(final=True)
    delta = "response.output_audio_transcript.delta"
    sounds = ["response.output_audio.delta"] * 5
    assert dialogue.kinds() == [*QUESTION, *BEGUN, delta, delta, *sounds, *ENDED]
    user = dialogue.last("input_audio_buffer.committed")["item_id"]
    assert user == "item_0"
    answer = dialogue.last("response.output_audio.done")["item_id"]
    assert answer == "item_1"
    added = dialogue.last("conversation.item.added")
    assert added["previous_item_id"] == user
    words = dialogue.last("conversation.item.input_audio_transcription.completed")
    assert (words["item_id"], words["transcript"]) == (user, "What is it?")
    done = dialogue.last("response.done")["response"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "It is"}]
    assert done["usage"]["output_token_details"] == {"text_tokens": 2, "audio_tokens": 20}
    assert (done["usage"]["input_tokens"], done["usage"]["total_tokens"]) == (40, 62)
    heard = b"".join(
        base64.b64decode(event["delta"])
        for event in dialogue.events
        if event["type"] == "response.output_audio.delta"
    )
    assert heard == SECOND


def test_a_turn_with_pauses_is_one_item_and_starts_once() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_speech_stopped", 400)
    dialogue.happens("user_speech_started", 600)
    dialogue.happens("user_speech_stopped", 900)
    dialogue.happens("user_turn_ended", 900)
    assert dialogue.kinds() == QUESTION[:5]
    assert dialogue.events[0]["audio_start_ms"] == 100
    assert dialogue.events[1]["audio_end_ms"] == 900


def test_words_are_sent_as_they_become_certain_and_never_taken_back() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.happens("user_speech_started", 100)
    for words in ("What", "What is", "Who is", "What is it"):
        dialogue.user_says(words, 0, final=False)
    deltas = [event["delta"] for event in dialogue.events if event["type"].endswith(".delta")]
    assert deltas == ["What", " is", " it"]


def test_who_does_not_ask_for_words_gets_none() -> None:
    dialogue = Dialogue()
    dialogue.question()
    assert not [kind for kind in dialogue.kinds() if "transcription" in kind]


def test_a_turn_without_words_leaves_no_item() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900)
    dialogue.happens("nothing_said")
    assert dialogue.kinds()[-2:] == [
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.deleted",
    ]
    dialogue.take()
    dialogue.happens("user_speech_started", 2000)
    # Not the id of the item that is gone.
    assert dialogue.events[0]["item_id"] == "item_0.2"


def test_an_interruption_cancels_the_response_and_then_the_client_may_truncate() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.question()
    dialogue.assistant_says("One", " two", " three")
    dialogue.sound()
    dialogue.take()
    dialogue.now += 0.4
    dialogue.happens("user_speech_started", 2000)
    assert dialogue.kinds() == []
    dialogue.stop()
    assert dialogue.kinds() == ["input_audio_buffer.speech_started", *ENDED]
    assert dialogue.events[0]["audio_start_ms"] == 2000
    done = dialogue.last("response.done")["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert done["output"][0]["status"] == "incomplete"
    dialogue.client(
        "conversation.item.truncate", item_id="item_1", content_index=0, audio_end_ms=350
    )
    assert dialogue.last("conversation.item.truncated")["audio_end_ms"] == 350
    # It is stopped already: nothing more is asked of the server than to note what was heard.
    assert not dialogue.requests
    (report,) = dialogue.state.playout.reports(dialogue.now)
    assert (report.played_samples, report.finished) == (8400, True)
    dialogue.report("interrupted", heard_text="One", assistant_turn_index=1)
    dialogue.client("conversation.item.retrieve", item_id="item_1")
    item = dialogue.last("conversation.item.retrieved")["item"]
    assert item["content"] == [{"type": "output_audio", "transcript": "One"}]


def test_a_short_sound_of_the_listener_interrupts_nothing() -> None:
    dialogue = Dialogue(minmo=True)
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound()
    dialogue.take()
    dialogue.happens("user_speech_started", 2000)
    dialogue.happens("user_speech_stopped", 2100)
    dialogue.report()
    assert "input_audio_buffer.speech_started" not in dialogue.kinds()
    # Who asked for them learns of it by MinMo's own events.
    assert [event.get("kind") for event in dialogue.events[:2]] == [
        "user_speech_started",
        "user_speech_stopped",
    ]


def test_who_plays_is_told_to_stop_also_after_the_last_audio() -> None:
    dialogue = Dialogue(minmo=True)
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.take()
    dialogue.stop()
    assert dialogue.events == [{"type": "minmo.stop_playback", "item_id": "item_1"}]


def test_speech_that_outlasts_the_answer_is_the_users_turn() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.take()
    dialogue.happens("user_speech_started", 2000)
    dialogue.report(assistant_turn_index=1)
    assert dialogue.kinds() == ["input_audio_buffer.speech_started"]
    assert dialogue.events[0]["item_id"] == "item_2"


def test_an_interruption_before_anything_was_said_goes_on_with_the_turn() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.question("Where is")
    dialogue.take()
    dialogue.happens("user_speech_started", 1200)
    dialogue.happens("interrupted")
    assert dialogue.kinds() == ["input_audio_buffer.speech_started", "response.done"]
    dialogue.happens("user_turn_ended", 1800)
    # The server counts both parts as one turn; for the client they are two items.
    dialogue.user_says("Where is my home?", 0)
    words = dialogue.last("conversation.item.input_audio_transcription.completed")
    assert words["transcript"] == "my home?"
    assert [item.text for item in dialogue.state.items.of_turn(0)] == ["Where is", "my home?"]


def test_words_of_two_parts_that_were_not_known_apart_are_in_the_second() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900)
    dialogue.happens("user_speech_started", 1200)
    dialogue.happens("interrupted")
    dialogue.happens("user_turn_ended", 1800)
    dialogue.take()
    dialogue.user_says("Where is my home?", 0)
    assert dialogue.last("conversation.item.deleted")["item_id"] == "item_0"
    assert [item.text for item in dialogue.state.items] == ["Where is my home?"]


def test_a_lost_stream_fails_what_was_under_way() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.client("input_audio_buffer.commit", event_id="e1")
    events = dialogue.from_server.lost()
    done = next(event for event in events if event["type"] == "response.done")
    assert done["response"]["status_details"]["error"]["code"] == "orchestrator_lost"
    assert [event["error"]["event_id"] for event in events if event["type"] == "error"] == ["e1"]
    assert not dialogue.state.pending


def test_a_lost_stream_fails_the_answer_to_a_turn_whose_words_were_not_known() -> None:
    dialogue = Dialogue()
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900)
    kinds = [event["type"] for event in dialogue.from_server.lost()]
    assert kinds == ["response.created", "response.done", "conversation.item.deleted"]


@pytest.mark.parametrize(
    ("outcome", "status"), [("failed", "failed"), ("interrupted", "cancelled")]
)
def test_an_answer_ends_as_the_report_says(outcome: str, status: str) -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.report(outcome, utterance="", detail="no voice")
    response = dialogue.last("response.done")["response"]
    assert (response["status"], response["status_details"]["type"]) == (status, status)


def test_audio_that_is_held_back_is_dropped_at_an_interruption() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(SECOND * 20, final=True)
    sent = dialogue.kinds().count("response.output_audio.delta")
    assert 25 <= sent <= 27
    dialogue.stop()
    dialogue.take()
    dialogue.play(30)
    assert dialogue.kinds() == []


def test_the_rest_of_a_long_answer_follows_as_it_is_played() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(SECOND * 20, final=True)
    for _ in range(160):
        dialogue.play(0.1)
    assert dialogue.kinds().count("response.output_audio.delta") == 100
    assert dialogue.kinds()[-1] == "response.done"


# --- turns that the client ends


def test_a_commit_makes_an_item_and_no_answer() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    dialogue.client("input_audio_buffer.commit", event_id="e1")
    (request,) = dialogue.requests
    assert kind_of(request) == "commit_input"
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900, request.request_id)
    dialogue.user_says("What is it?", 0, request_id=request.request_id)
    assert dialogue.kinds() == QUESTION[2:6]
    assert not dialogue.state.pending


def test_words_find_the_commit_that_they_belong_to() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    asked = []
    for _ in range(2):
        dialogue.client("input_audio_buffer.commit")
        asked.append(dialogue.requests[-1].request_id)
        dialogue.happens("user_turn_ended", 900, asked[-1])
    for turn, (request_id, words) in enumerate(zip(asked, ("one", "two"), strict=True)):
        dialogue.user_says(words, turn, request_id=request_id)
    assert [item.text for item in dialogue.state.items] == ["one", "two"]


def test_response_create_carries_what_is_asked_and_gives_metadata_back() -> None:
    dialogue = Dialogue(tools=[TOOL], **BY_CLIENT)
    dialogue.client(
        "response.create",
        response={
            "instructions": "Be brief.",
            "metadata": {"client_event_id": "x"},
            "max_output_tokens": 2,
            "tool_choice": {"type": "function", "name": "clock"},
            "output_modalities": ["text"],
        },
    )
    (request,) = dialogue.requests
    wanted = request.create_response
    assert (wanted.instructions, wanted.max_answer_tokens) == ("Be brief.", 2)
    assert (wanted.tool_choice.name, wanted.text_only) == ("clock", True)
    created = dialogue.last("response.created")["response"]
    assert created["metadata"] == {"client_event_id": "x"}
    dialogue.assistant_says("One", " two", request_id=request.request_id)
    dialogue.report(token_count=2, read_count=30, assistant_turn_index=0)
    assert dialogue.kinds() == [
        "response.created",
        *BEGUN,
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        *ENDED[2:],
    ]
    done = dialogue.last("response.done")["response"]
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert done["usage"]["total_tokens"] == 32


def test_an_answer_that_is_asked_for_while_the_last_is_played_waits() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    dialogue.client("response.create")
    dialogue.assistant_says("One", request_id=dialogue.requests[0].request_id)
    dialogue.sound(final=True)
    dialogue.take()
    dialogue.client("response.create")
    assert dialogue.kinds() == ["response.created"]
    assert not dialogue.requests
    dialogue.report(heard_text="One", assistant_turn_index=0)
    assert [kind_of(request) for request in dialogue.requests] == ["create_response"]
    dialogue.assistant_says("Two", utterance="u2")
    assert dialogue.last("response.output_item.added")["item"]["id"] == "item_1"


def test_a_second_answer_at_once_is_refused() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    dialogue.client("response.create")
    dialogue.take()
    error = error_of(dialogue, "response.create")
    assert error.code == "conversation_already_has_active_response"


def test_cancel_stops_an_answer_once() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    dialogue.client("response.create")
    request_id = dialogue.requests[0].request_id
    dialogue.assistant_says("One", request_id=request_id)
    dialogue.take()
    dialogue.client("response.cancel")
    dialogue.client("response.cancel")
    assert [kind_of(request) for request in dialogue.requests] == ["interrupt"]
    dialogue.report("interrupted", request_id=request_id)
    dialogue.happens("interrupted", utterance_id="u1", request_id=request_id)
    response = dialogue.last("response.done")["response"]
    assert response["status_details"]["reason"] == "client_cancelled"
    dialogue.take()
    error = error_of(dialogue, "response.cancel")
    assert error.code == "response_cancel_not_active"
    assert error.message.startswith("Cancellation failed")


def test_an_answer_that_the_server_refuses_ends_as_failed() -> None:
    dialogue = Dialogue(**BY_CLIENT)
    dialogue.client("response.create", event_id="e1")
    request_id = dialogue.requests[0].request_id
    dialogue.server(request_id, refused=Refused(reason="ANSWERING", message="wait"))
    assert dialogue.kinds() == ["response.created", "error", "response.done"]
    error = dialogue.last("error")["error"]
    assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "e1")
    assert dialogue.last("response.done")["response"]["status"] == "failed"


@pytest.mark.parametrize(
    "response",
    [
        {"conversation": "none"},
        {"input": []},
        {"tools": [TOOL]},
        {"temperature": 0.5},
        {"prompt": {"id": "x"}},
        {"audio": {"output": {"voice": "other"}}},
        {"audio": {"output": {"format": {"type": "audio/pcmu"}}}},
    ],
)
def test_what_one_answer_cannot_have_is_refused_by_name(response: dict[str, Any]) -> None:
    error = error_of(Dialogue(), "response.create", response=response)
    assert error.code == "unsupported"
    assert error.param is not None
    assert error.param.startswith(f"response.{next(iter(response))}")


# --- tools


def test_a_tool_call_is_announced_answered_and_followed_up() -> None:
    dialogue = Dialogue(tools=[TOOL], **BY_CLIENT)
    dialogue.client("response.create")
    request_id = dialogue.requests[0].request_id
    call = conversation_pb2.ToolCall(
        utterance_id="u1", call_id="c1", name="clock", arguments_json='{"a":1}', turn_index=1
    )
    dialogue.server(request_id, tool_call=call)
    dialogue.report(assistant_turn_index=1, request_id=request_id)
    assert dialogue.kinds() == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    item = dialogue.last("response.output_item.done")["item"]
    assert (item["call_id"], item["name"], item["arguments"]) == ("c1", "clock", '{"a":1}')
    dialogue.take()
    output = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
    dialogue.client("conversation.item.create", item=output, previous_item_id="item_1")
    (request,) = dialogue.requests
    assert (request.tool_result.call_id, request.tool_result.output) == ("c1", "noon")
    turn = conversation_pb2.Turn(index=2, role=common_pb2.ROLE_TOOL, text="noon")
    dialogue.server(request.request_id, turn_added=conversation_pb2.TurnAdded(turn=turn))
    assert dialogue.last("conversation.item.done")["item"]["output"] == "noon"


def test_a_call_of_another_time_is_added_with_its_id() -> None:
    dialogue = Dialogue()
    item = {"type": "function_call", "name": "clock", "call_id": "c9", "arguments": "{}"}
    dialogue.client("conversation.item.create", item=item)
    call = dialogue.requests[0].add_turn.tool_call
    assert (call.call_id, call.name, call.arguments_json) == ("c9", "clock", "{}")


def test_text_before_a_call_is_an_item_of_its_own() -> None:
    dialogue = Dialogue(tools=[TOOL])
    dialogue.question()
    dialogue.assistant_says("Wait.")
    call = conversation_pb2.ToolCall(utterance_id="u1", call_id="c1", name="clock", turn_index=2)
    dialogue.server(tool_call=call)
    assert [item.kind for item in dialogue.state.items] == ["message", "message", "function_call"]
    assert dialogue.last("response.output_item.added")["output_index"] == 1


# --- items


@pytest.mark.parametrize(
    ("role", "part", "text", "number"),
    [
        ("user", {"type": "input_text", "text": "Hello"}, "Hello", common_pb2.ROLE_USER),
        ("user", {"type": "input_audio", "transcript": "Hi"}, "Hi", common_pb2.ROLE_USER),
        ("system", {"type": "input_text", "text": "Be kind"}, "Be kind", common_pb2.ROLE_SYSTEM),
        ("assistant", {"type": "output_text", "text": "Yes"}, "Yes", common_pb2.ROLE_ASSISTANT),
        ("assistant", {"type": "output_audio", "transcript": "Yes"}, "Yes", 3),
    ],
)
def test_messages_are_added_under_the_clients_id(
    role: str, part: dict[str, Any], text: str, number: int
) -> None:
    dialogue = Dialogue()
    item = {"id": "mine", "type": "message", "role": role, "content": [part]}
    dialogue.client("conversation.item.create", item=item, previous_item_id="root")
    (request,) = dialogue.requests
    assert (request.add_turn.role, request.add_turn.text) == (number, text)
    assert not dialogue.events
    turn = conversation_pb2.Turn(index=4, text=text)
    dialogue.server(request.request_id, turn_added=conversation_pb2.TurnAdded(turn=turn))
    assert dialogue.kinds() == ["conversation.item.added", "conversation.item.done"]
    assert dialogue.events[0]["item"]["id"] == "mine"
    assert error_of_duplicate(dialogue, item).code == "item_create_duplicate_item_id"
    dialogue.client("conversation.item.delete", item_id="mine")
    request = dialogue.requests[-1]
    assert request.delete_turn.turn_index == 4
    deleted = conversation_pb2.TurnDeleted(turn_index=4)
    dialogue.server(request.request_id, turn_deleted=deleted)
    assert dialogue.last("conversation.item.deleted")["item_id"] == "mine"
    assert not dialogue.state.pending


def error_of_duplicate(dialogue: Dialogue, item: dict[str, Any]) -> EventError:
    dialogue.requests.clear()
    return error_of(dialogue, "conversation.item.create", item=item)


def test_a_recording_is_recognised_before_it_is_added() -> None:
    dialogue = Dialogue()
    part = {"type": "input_audio", "audio": base64.b64encode(SECOND).decode()}
    item = {"type": "message", "role": "user", "content": [part]}
    outcome = dialogue.client("conversation.item.create", item=item)
    recording = outcome.recording
    assert recording is not None
    assert pcm_of(recording) == SECOND
    added = dialogue.from_client.recognised(recording, "Hello")
    assert added.requests[0].add_turn.text == "Hello"
    with pytest.raises(EventError, match="no words"):
        dialogue.from_client.recognised(recording, " ")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_image"}]}, "item.content[0].type"),
        (
            {"role": "user", "content": [{"type": "output_text", "text": "x"}]},
            "item.content[0].type",
        ),
        ({"role": "user", "content": [{"type": "input_text"}]}, "item.content[0].text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "item.content[0].transcript"),
        ({"role": "user", "content": [{"type": "input_text", "text": " "}]}, "item.content"),
    ],
)
def test_messages_that_are_none_are_refused_by_name(item: dict[str, Any], param: str) -> None:
    error = error_of(Dialogue(), "conversation.item.create", item={"type": "message", **item})
    assert error.param == param


def test_items_go_to_the_end_only() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.take()
    message = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "x"}],
    }
    error = error_of(dialogue, "conversation.item.create", item=message, previous_item_id="root")
    assert (error.code, error.param) == ("unsupported", "previous_item_id")
    error = error_of(dialogue, "conversation.item.create", item=message, previous_item_id="no")
    assert error.code == "item_create_invalid_previous_item_id"
    dialogue.client("conversation.item.create", item=message, previous_item_id="item_0")
    assert kind_of(dialogue.requests[0]) == "add_turn"


@pytest.mark.parametrize("what", ["retrieve", "truncate", "delete"])
def test_items_that_are_not_there_are_refused(what: str) -> None:
    fields = {"content_index": 0, "audio_end_ms": 1} if what == "truncate" else {}
    error = error_of(Dialogue(), f"conversation.item.{what}", item_id="none", **fields)
    assert (error.code, error.param) == (f"item_{what}_invalid_item_id", "item_id")


def test_truncation_beyond_the_audio_is_refused() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound()
    dialogue.take()
    error = error_of(
        dialogue,
        "conversation.item.truncate",
        item_id="item_1",
        content_index=0,
        audio_end_ms=1001,
    )
    assert error.message == "Audio content of 1000ms is already shorter than 1001ms"


def test_truncation_of_an_answer_that_is_played_stops_it_there() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.take()
    dialogue.client(
        "conversation.item.truncate", item_id="item_1", content_index=0, audio_end_ms=500
    )
    assert [kind_of(request) for request in dialogue.requests] == ["interrupt"]
    dialogue.stop()
    (report,) = dialogue.state.playout.reports(dialogue.now)
    assert (report.played_samples, report.finished) == (12_000, True)


def test_truncation_of_an_answer_that_counts_as_heard_is_passed_on() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.report(heard_text="One", assistant_turn_index=1)
    dialogue.take()
    dialogue.client(
        "conversation.item.truncate", item_id="item_1", content_index=0, audio_end_ms=500
    )
    (request,) = dialogue.requests
    assert (request.playback.played_samples, request.playback.finished) == (12_000, True)


def test_deleting_an_answer_of_which_nothing_was_heard_forgets_it() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound()
    dialogue.stop()
    dialogue.take()
    dialogue.client("conversation.item.delete", item_id="item_1")
    assert dialogue.kinds() == ["conversation.item.deleted"]
    (report,) = dialogue.state.playout.reports(dialogue.now)
    assert (report.played_samples, report.finished) == (0, True)


# --- settings


def test_settings_before_the_stream_are_in_force_at_once() -> None:
    dialogue = Dialogue(ready=False)
    dialogue.client("session.update", session={"instructions": "Be kind."})
    assert dialogue.last("session.updated")["session"]["instructions"] == "Be kind."
    assert not dialogue.requests


def test_settings_come_into_force_when_the_server_has_them() -> None:
    dialogue = Dialogue()
    dialogue.client("session.update", session={"instructions": "Be kind."}, event_id="e1")
    (request,) = dialogue.requests
    assert request.update_settings.settings.system_prompt == "Be kind."
    assert not dialogue.events
    dialogue.server(request.request_id, settings_updated=conversation_pb2.SettingsUpdated())
    assert dialogue.last("session.updated")["session"]["instructions"] == "Be kind."


def test_settings_that_the_server_refuses_change_nothing() -> None:
    dialogue = Dialogue()
    dialogue.client("session.update", session={"instructions": "x"}, event_id="e1")
    refused = Refused(reason="BAD_SETTINGS", message="no", field="settings.system_prompt")
    dialogue.server(dialogue.requests[0].request_id, refused=refused)
    error = dialogue.last("error")["error"]
    assert (error["param"], error["event_id"]) == ("session.instructions", "e1")
    assert dialogue.state.wanted == dialogue.state.config
    assert dialogue.state.config.instructions == ""


def test_turn_detection_is_passed_on() -> None:
    for given, kind, wait, keep in (
        (None, TurnDetection.KIND_CLIENT, False, False),
        ({"type": "server_vad"}, TurnDetection.KIND_SILENCE, False, False),
        (
            {"type": "semantic_vad", "create_response": False, "interrupt_response": False},
            TurnDetection.KIND_SEMANTIC,
            True,
            True,
        ),
    ):
        dialogue = Dialogue(audio={"input": {"turn_detection": given}})
        made = dialogue.state.config.to_proto().turn_detection
        assert (made.kind, made.wait_for_create_response, made.keep_talking) == (kind, wait, keep)


def test_formats_cannot_change_once_audio_has_come() -> None:
    dialogue = Dialogue()
    changed = {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}
    outcome = dialogue.client("session.update", session=changed)
    assert outcome.reopen
    dialogue.client("input_audio_buffer.append", audio=base64.b64encode(b"\xff" * 160).decode())
    assert len(dialogue.requests[-1].audio.data) == 320
    back = {"audio": {"input": {"format": {"type": "audio/pcm"}}}}
    with pytest.raises(EventError) as raised:
        dialogue.client("session.update", session=back)
    assert raised.value.code == "unsupported"


def test_minmos_own_events_go_to_those_who_ask() -> None:
    dialogue = Dialogue(minmo=True)
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    item = dialogue.last("response.output_audio.done")["item_id"]
    dialogue.take()
    dialogue.client("minmo.playback", item_id=item, played_samples=480, finished=True)
    (request,) = dialogue.requests
    assert (request.playback.utterance_id, request.playback.played_samples) == ("u1", 480)
    assert dialogue.state.playout.reports(dialogue.now + 10) == []
    dialogue.report(heard_text="One", generated_text="One", assistant_turn_index=1)
    report = dialogue.last("minmo.turn_report")
    assert (report["item_id"], report["user_item_id"]) == (item, "item_0")
    assert report["outcome"] == "completed"


def test_the_loudspeaker_of_webrtc_is_not_here() -> None:
    assert error_of(Dialogue(), "output_audio_buffer.clear").code == "unsupported"


def test_clearing_the_input_forgets_the_open_turn() -> None:
    dialogue = Dialogue()
    dialogue.happens("user_speech_started", 100)
    dialogue.client("input_audio_buffer.clear")
    dialogue.happens("input_cleared", request_id=dialogue.requests[0].request_id)
    assert dialogue.kinds()[-1] == "input_audio_buffer.cleared"
    assert not dialogue.state.pending
    dialogue.happens("user_speech_started", 500)
    assert dialogue.kinds()[-1] == "input_audio_buffer.speech_started"


# --- answers that come together


def test_a_question_whose_words_cannot_be_had_gets_a_response_that_failed() -> None:
    dialogue = Dialogue(**TRANSCRIBES)
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900)
    dialogue.take()
    dialogue.report("failed", utterance="", detail="no encoder")
    assert dialogue.kinds() == [
        "conversation.item.input_audio_transcription.failed",
        "conversation.item.deleted",
        "response.created",
        "response.done",
    ]
    assert dialogue.events[0]["error"]["message"] == "no encoder"
    details = dialogue.last("response.done")["response"]["status_details"]
    assert details["error"]["code"] == "answer_failed"
    dialogue.take()
    dialogue.question()
    assert "response.created" in dialogue.kinds()


def test_an_answer_is_not_asked_for_while_that_to_the_turn_is_coming() -> None:
    dialogue = Dialogue()
    dialogue.happens("user_speech_started", 100)
    dialogue.happens("user_turn_ended", 900)
    error = error_of(dialogue, "response.create")
    assert error.code == "conversation_already_has_active_response"
    dialogue.happens("nothing_said")
    dialogue.client("response.create")
    assert [kind_of(request) for request in dialogue.requests] == ["create_response"]


def test_an_answer_that_waits_for_the_last_is_dropped_when_the_user_takes_the_floor() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.client("response.create")
    dialogue.take()
    dialogue.happens("user_speech_started", 2000)
    dialogue.stop()
    dialogue.report("interrupted", heard_text="One", assistant_turn_index=1)
    dialogue.happens("interrupted", utterance_id="u1")
    assert dialogue.kinds() == ["input_audio_buffer.speech_started", "response.done"]
    details = dialogue.last("response.done")["response"]["status_details"]
    assert details == {"type": "cancelled", "reason": "turn_detected"}
    assert not dialogue.requests
    assert not dialogue.state.pending


def test_an_answer_that_was_asked_for_survives_the_end_of_the_one_before() -> None:
    dialogue = Dialogue()
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.sound(final=True)
    dialogue.client(
        "conversation.item.truncate", item_id="item_1", content_index=0, audio_end_ms=500
    )
    dialogue.client("response.create", response={"metadata": {"mine": "yes"}})
    dialogue.stop()
    dialogue.report("interrupted", heard_text="One", assistant_turn_index=1)
    request_id = dialogue.requests[-1].request_id
    # It tells again what the report has told.
    dialogue.happens("interrupted", utterance_id="u1")
    dialogue.assistant_says("Two", utterance="u2", request_id=request_id)
    dialogue.sound(utterance="u2", final=True, request_id=request_id)
    done = dialogue.last("response.done")["response"]
    assert (done["status"], done["metadata"]) == ("completed", {"mine": "yes"})


def test_an_answer_that_comes_unasked_is_not_taken_for_one_that_was_asked_for() -> None:
    dialogue = Dialogue()
    dialogue.client("response.create", event_id="e1")
    asked = dialogue.requests[-1].request_id
    dialogue.question()
    dialogue.assistant_says("One")
    dialogue.server(asked, refused=Refused(reason="ANSWERING", message="wait"))
    dialogue.assistant_says(" two", first=1)
    dialogue.sound(final=True)
    created = [event for event in dialogue.events if event["type"] == "response.created"]
    done = [event["response"] for event in dialogue.events if event["type"] == "response.done"]
    assert [response["status"] for response in done] == ["cancelled", "completed"]
    assert len(created) == 2
    assert done[1]["output"][0]["content"][0]["transcript"] == "One two"
    assert "error" not in dialogue.kinds()


# --- what was heard, told late


def interrupted(dialogue: Dialogue) -> None:
    """An answer of a second is stopped after 0.4 s, and the client says nothing about it."""
    dialogue.question()
    dialogue.assistant_says("One", " two")
    dialogue.sound()
    dialogue.now += 0.4
    dialogue.stop()
    (report,) = dialogue.state.playout.reports(dialogue.now + 1)
    assert report.played_samples == 9600


@pytest.mark.parametrize("reported", [False, True])
def test_a_truncation_that_comes_late_is_passed_on(reported: bool) -> None:
    dialogue = Dialogue()
    interrupted(dialogue)
    if reported:
        dialogue.report("interrupted", heard_text="One", assistant_turn_index=1)
    dialogue.client(
        "conversation.item.truncate", item_id="item_1", content_index=0, audio_end_ms=900
    )
    playback = dialogue.requests[-1].playback
    assert (playback.utterance_id, playback.played_samples) == ("u1", 21_600)
    assert playback.finished


def test_a_turn_that_was_corrected_is_shown_as_it_is() -> None:
    dialogue = Dialogue(minmo=True)
    interrupted(dialogue)
    dialogue.report("interrupted", heard_text="One", assistant_turn_index=1)
    turn = conversation_pb2.Turn(index=1, text="One two", generated_text="One two three")
    changed = conversation_pb2.TurnChanged(turn=turn, utterance_id="u1")
    dialogue.server(turn_changed=changed)
    assert dialogue.events[-1] == {
        "type": "minmo.turn_changed",
        "item_id": "item_1",
        "heard_text": "One two",
        "generated_text": "One two three",
    }
    dialogue.client("conversation.item.retrieve", item_id="item_1")
    item = dialogue.last("conversation.item.retrieved")["item"]
    assert item["content"] == [{"type": "output_audio", "transcript": "One two"}]


# --- voices


def test_the_voices_are_told_and_one_that_is_none_is_refused() -> None:
    dialogue = Dialogue(minmo=True, ready=False)
    ready = conversation_pb2.ConverseReady(session_id="s1", voices=["default", "other"])
    dialogue.server(ready=ready)
    event = dialogue.last("minmo.ready")
    assert (event["voices"], event["recording"]) == (["default", "other"], False)
    dialogue.client("session.update", session={"audio": {"output": {"voice": "nobody"}}})
    refused = Refused(
        reason="BAD_SETTINGS",
        message="there is no voice 'nobody'; there are: default, other",
        field="update_settings.settings.voice",
    )
    dialogue.server(dialogue.requests[0].request_id, refused=refused)
    error = dialogue.last("error")["error"]
    assert error["param"] == "session.audio.output.voice"
    assert "default, other" in error["message"]
