"""What a server's events must be, and in which order, in the Realtime protocol."""

from __future__ import annotations

from typing import Any

Event = dict[str, Any]

KNOWN = frozenset(
    {
        "error",
        "session.created",
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "input_audio_buffer.cleared",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.deleted",
        "conversation.item.retrieved",
        "conversation.item.truncated",
        "conversation.item.input_audio_transcription.delta",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.input_audio_transcription.failed",
        "response.created",
        "response.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_audio.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "rate_limits.updated",
        "minmo.ready",
        "minmo.turn_event",
        "minmo.turn_report",
        "minmo.turn_changed",
        "minmo.stop_playback",
        "minmo.probabilities",
    }
)
_ERROR_FIELDS = {"type", "code", "message", "param", "event_id"}


class Protocol:
    """The events of one connection.

    Args:
        has_ids: whether events have ids; those of a connection do, those on the way to it don't.
    """

    def __init__(self, *, has_ids: bool = True) -> None:
        self._has_ids = has_ids
        self._ids: set[str] = set()
        self._began = False
        self._response = ""
        self._responses: set[str] = set()
        self._items: dict[str, bool] = {}
        self._output: dict[str, bool] = {}
        self._parts: set[str] = set()

    def take(self, event: Event) -> list[str]:
        """What is wrong with the next event."""
        kind = event.get("type")
        if kind not in KNOWN:
            return [f"an event of an unknown type: {str(event)[:200]}"]
        wrong = self._checked_id(event)
        if self._has_ids and not self._began and kind not in ("session.created", "error"):
            wrong.append(f"{kind} before session.created")
        self._began = self._began or kind == "session.created"
        if kind == "error":
            wrong += self._error(event)
        elif kind in ("response.created", "response.done"):
            wrong += self._bound(kind, event["response"])
        elif kind.startswith("response."):
            wrong += self._inside(kind, event)
        elif kind.startswith("conversation.item."):
            wrong += self._item(kind, event)
        return wrong

    @property
    def open_response(self) -> str:
        """The response that has not ended; empty if there is none."""
        return self._response

    def _checked_id(self, event: Event) -> list[str]:
        if not self._has_ids:
            return []
        event_id = event.get("event_id")
        if not isinstance(event_id, str) or event_id in self._ids:
            return [f"{event['type']} without an id of its own: {event_id!r}"]
        self._ids.add(event_id)
        return []

    def _error(self, event: Event) -> list[str]:
        error = event.get("error")
        if not isinstance(error, dict) or error.keys() != _ERROR_FIELDS:
            return [f"an error event of another form: {str(event)[:300]}"]
        if not (isinstance(error["code"], str) and error["message"]):
            return [f"an error without code or message: {error}"]
        return []

    def _bound(self, kind: str, response: Event) -> list[str]:
        response_id = response["id"]
        if kind == "response.created":
            wrong = []
            if self._response:
                wrong.append(f"response.created while {self._response} is open")
            if response_id in self._responses:
                wrong.append(f"{response_id} is created twice")
            self._response = response_id
            self._responses.add(response_id)
            self._output.clear()
            return wrong
        if response_id != self._response:
            return [f"response.done of {response_id} while {self._response or 'none'} is open"]
        self._response = ""
        if response["status"] not in ("completed", "cancelled", "failed", "incomplete"):
            return [f"response.done with status {response['status']}"]
        unfinished = [item for item, done in self._output.items() if not done]
        return [f"response.done before {unfinished} were done"] if unfinished else []

    def _inside(self, kind: str, event: Event) -> list[str]:
        if event["response_id"] != self._response:
            return [f"{kind} of {event['response_id']} while {self._response or 'none'} is open"]
        if kind.startswith("response.output_item."):
            item_id, done = event["item"]["id"], kind.endswith("done")
            if done != (self._output.get(item_id) is False):
                return [f"{kind} of {item_id} out of order"]
            self._output[item_id] = done
            return []
        item_id = event["item_id"]
        if self._output.get(item_id) is not False:
            return [f"{kind} of {item_id}, which is not open"]
        if kind == "response.content_part.added":
            self._parts.add(item_id)
        elif "function_call" not in kind and item_id not in self._parts:
            return [f"{kind} of {item_id} without an open part"]
        if kind == "response.content_part.done":
            self._parts.discard(item_id)
        return []

    def _item(self, kind: str, event: Event) -> list[str]:
        if kind.endswith((".added", ".done")):
            item_id, done = event["item"]["id"], kind.endswith(".done")
            if done != (self._items.get(item_id) is False):
                return [f"{kind} of {item_id} out of order"]
            self._items[item_id] = done
        elif kind.endswith(".deleted") and self._items.pop(event["item_id"], None) is None:
            return [f"{kind} of {event['item_id']}, which was not there"]
        return []
