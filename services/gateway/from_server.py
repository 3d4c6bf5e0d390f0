"""What the orchestrator says, as events of the protocol: translation alone, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, ConverseResponse, TurnEventKind
from services.gateway.answer import Event
from services.gateway.errors import SERVER_ERROR, EventError
from services.gateway.hearing import Hearing
from services.gateway.speaking import Speaking
from services.gateway.state import Outcome, Pending, State

_KINDS = {
    number: name.removeprefix("TURN_EVENT_KIND_").lower() for name, number in TurnEventKind.items()
}

_FIELDS = {
    "system_prompt": "session.instructions",
    "voice": "session.audio.output.voice",
    "instruct": "session.minmo.instruct",
    "max_answer_tokens": "session.max_output_tokens",
    "end_of_turn_silence_ms": "session.audio.input.turn_detection.silence_duration_ms",
    "temperature": "session.minmo.temperature",
    "tools": "session.tools",
    "tool_choice": "session.tool_choice",
    "add_turn.text": "item.content",
    "tool_result.output": "item.output",
    "delete_turn.turn_index": "item_id",
}
"""Fields of requests, as clients call them."""


class FromServer:
    """Translates responses of one connection's streams.

    Args:
        state: of the connection.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._hearing = hearing = Hearing(state)
        self._speaking = speaking = Speaking(state, hearing)
        self._messages: dict[str, Callable[[ConverseResponse], list[Event]]] = {
            "ready": self._ready,
            "user_text": hearing.user_text,
            "assistant_text": speaking.assistant_text,
            "event": self._event,
            "tool_call": speaking.tool_call,
            "settings_updated": self._settings_updated,
            "turn_added": self._turn_added,
            "turn_deleted": self._turn_deleted,
            "turn_changed": self._turn_changed,
            "refused": self._refused,
        }
        self._events: dict[int, Callable[[ConverseResponse], list[Event]]] = {
            TurnEventKind.TURN_EVENT_KIND_USER_SPEECH_STARTED: hearing.speech_started,
            TurnEventKind.TURN_EVENT_KIND_USER_SPEECH_STOPPED: hearing.speech_stopped,
            TurnEventKind.TURN_EVENT_KIND_USER_TURN_ENDED: hearing.turn_ended,
            TurnEventKind.TURN_EVENT_KIND_NOTHING_SAID: hearing.nothing_said,
            TurnEventKind.TURN_EVENT_KIND_ASSISTANT_STARTED: speaking.started,
            TurnEventKind.TURN_EVENT_KIND_INTERRUPTED: speaking.interrupted,
            TurnEventKind.TURN_EVENT_KIND_INPUT_CLEARED: hearing.input_cleared,
        }

    def translate(self, response: ConverseResponse, now: float) -> Outcome:
        """What follows from a response; audio goes to the playout, which says when it is due.

        Args:
            now: in seconds, for the playout.
        """
        outcome = self._translated(response, now)
        state = self._state
        if state.unheard is None and state.held_back is not None:
            self._release(state.held_back, outcome)
        return outcome

    def _release(self, request: ConverseRequest, outcome: Outcome) -> None:
        """Nothing is made or played any more: the answer that waited for that is asked for."""
        state, detection = self._state, self._state.config.turn_detection
        if state.user_item and detection is not None and detection.interrupt_response is not False:
            # The user has the floor, whom an answer now would not let finish.
            state.pending.pop(request.request_id, None)
            outcome.events += state.cancel()
            return
        state.held_back, state.unheard = None, ""
        outcome.requests.append(request)

    def _translated(self, response: ConverseResponse, now: float) -> Outcome:
        kind = response.WhichOneof("message") or ""
        match kind:
            case "audio":
                utterance_id = response.audio.utterance_id
                events = self._speaking.answer_of(utterance_id, response.request_id)
                self._state.playout.offer(response.audio)
                return Outcome(events)
            case "stop_playback":
                utterance_id = response.stop_playback.utterance_id
                return Outcome(self._speaking.stop_playback(utterance_id, now))
            case "report":
                return self._speaking.report(response)
        # One that is not known is of a newer server.
        act = self._messages.get(kind)
        return Outcome(act(response) if act is not None else [])

    def audio_due(self, audio: conversation_pb2.AudioOutput) -> list[Event]:
        """A piece of audio that is to be sent now."""
        return self._speaking.audio_due(audio)

    def lost(self) -> list[Event]:
        """The stream is lost, with all that was under way; another will go on with the session."""
        state = self._state
        error = {
            "type": SERVER_ERROR,
            "code": "orchestrator_lost",
            "message": "The server was lost and is looked for.",
        }
        events: list[Event] = []
        if state.answer is None and state.unheard == "":
            # The words of a question were not known yet: its answer is lost all the same.
            events += state.begin_answer()
        events += state.end("failed", error=error)
        for item in state.committed:
            events += state.remove_item(item.item_id)
        for pending in state.pending.values():
            if pending.asked != "response":
                unanswered = EventError(
                    "orchestrator_lost",
                    "The server was lost before it answered this: send it again.",
                    kind=SERVER_ERROR,
                )
                events.append(unanswered.to_event(pending.event_id))
        state.committed.clear()
        state.pending.clear()
        state.stopped.clear()
        state.wanted = state.config
        state.unheard = state.speech_ms = None
        state.user_item = state.partial = ""
        return events

    # --- the stream

    def _ready(self, response: ConverseResponse) -> list[Event]:
        state, ready = self._state, response.ready
        state.ready, state.stream_open = ready, True
        state.next_turn = max(state.next_turn, ready.turn_count)
        return [state.ready_event()] if state.config.minmo else []

    def _settings_updated(self, response: ConverseResponse) -> list[Event]:
        pending = self._state.pending.pop(response.request_id, None)
        if pending is None or pending.config is None:
            return []
        is_new = pending.config.minmo and not self._state.config.minmo
        self._state.config = pending.config
        events = [self._state.session_event("session.updated")]
        return [*events, self._state.ready_event()] if is_new else events

    # --- what happened

    def _event(self, response: ConverseResponse) -> list[Event]:
        event = response.event
        events: list[Event] = []
        if self._state.config.minmo:
            events.append(self._turn_event(event))
        act = self._events.get(event.kind)
        return [*events, *act(response)] if act is not None else events

    def _turn_event(self, event: conversation_pb2.TurnEvent) -> Event:
        item = self._state.items.of_utterance(event.utterance_id) if event.utterance_id else None
        return {
            "type": "minmo.turn_event",
            "kind": _KINDS.get(event.kind, "unspecified"),
            "audio_ms": event.audio_ms + self._state.offset_ms,
            "utterance_id": event.utterance_id,
            "item_id": item.item_id if item is not None else self._state.user_item or None,
            "detail": event.detail,
        }

    # --- answers to requests

    def _turn_added(self, response: ConverseResponse) -> list[Event]:
        state, turn = self._state, response.turn_added.turn
        state.saw_turn(turn.index)
        pending = state.pending.pop(response.request_id, None)
        if pending is None or pending.item is None:
            return []
        pending.item.turn = turn.index
        return state.add_item(pending.item)

    def _turn_deleted(self, response: ConverseResponse) -> list[Event]:
        turn = response.turn_deleted.turn_index
        self._state.pending.pop(response.request_id, None)
        return self._hearing.drop_parts(turn)

    def _turn_changed(self, response: ConverseResponse) -> list[Event]:
        """Something else was heard of an answer than it seemed."""
        state, changed = self._state, response.turn_changed
        item = state.items.of_utterance(changed.utterance_id)
        if item is None:
            return []
        item.text = changed.turn.text
        if not state.config.minmo:
            return []
        return [
            {
                "type": "minmo.turn_changed",
                "item_id": item.item_id,
                "heard_text": changed.turn.text,
                "generated_text": changed.turn.generated_text,
            }
        ]

    def _refused(self, response: ConverseResponse) -> list[Event]:
        refused, state = response.refused, self._state
        pending = state.pending.pop(response.request_id, None)
        if pending is None and response.request_id:
            return []  # it is over for the client already
        error = _error(refused, pending)
        if pending is None:
            return [error.to_event()]
        if pending.asked == "settings":
            state.wanted = state.config
        answer = state.answer
        if answer is None or answer.response_id != pending.response_id:
            return [error.to_event()]
        details = {"type": error.kind, "code": error.code, "message": error.message}
        if refused.reason == "INTERRUPTED":
            events = state.cancel()
        else:
            events = [error.to_event(), *state.end("failed", error=details)]
        if refused.reason != "ANSWERING" and state.unheard == "":
            state.unheard = None
        return events


def _error(refused: conversation_pb2.Refused, pending: Pending | None) -> EventError:
    """The protocol's error for a request that the orchestrator has not carried out."""
    event_id = pending.event_id if pending is not None else None
    message = refused.message
    field = refused.field.removeprefix("update_settings.").removeprefix("settings.")
    param = _FIELDS.get(field)
    match refused.reason:
        case "NO_INPUT":
            code = "input_audio_buffer_commit_empty"
            message = f"Error committing input audio buffer: buffer too small. {message}"
        case "ANSWERING":
            code = "conversation_already_has_active_response"
        case "NO_TURN":
            code = "item_delete_invalid_item_id"
        case "NO_CALL":
            code, param = "invalid_tool_call_id", "item.call_id"
        case "TOO_LONG":
            code = "string_above_max_length"
        case "TOO_MANY":
            code = "too_many_pending_events"
        case _:
            code = "invalid_value"
    return EventError(code, message, param=param, event_id=event_id)
