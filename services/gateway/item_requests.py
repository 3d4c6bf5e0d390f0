"""The history as clients write to it: translation alone, no I/O."""

from __future__ import annotations

from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest
from services.gateway import client_events as events
from services.gateway.errors import EventError, not_supported
from services.gateway.items import Content, Item
from services.gateway.parsing import audio_bytes
from services.gateway.state import Outcome, Pending, Recording, State

_ROLES = {
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
    "system": common_pb2.ROLE_SYSTEM,
}


class ItemRequests:
    """Adds, cuts and removes items.

    Args:
        state: of the connection.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def create(self, event: events.ItemCreate) -> Outcome:
        """Adds to the history."""
        state, given = self._state, event.item
        if given.id is not None and state.items.knows(given.id):
            raise EventError(
                "item_create_duplicate_item_id",
                f"Error adding item: the item '{given.id[:100]}' already exists.",
                param="item.id",
            )
        self._check_place(event)
        item = Item(given.id or state.items.new_id(state.next_turn))
        match given:
            case events.Message():
                return self._message(item, given, event.event_id)
            case events.FunctionCall():
                item.kind, item.name, item.text = given.type, given.name, given.arguments
                item.call_id = given.call_id or f"call_{item.item_id}"
                call = conversation_pb2.ToolCall(
                    call_id=item.call_id, name=given.name, arguments_json=given.arguments
                )
                turn = conversation_pb2.AddTurn(role=common_pb2.ROLE_ASSISTANT, tool_call=call)
                request = ConverseRequest(add_turn=turn)
                return self._ask(request, Pending("item", event.event_id, item))
            case events.FunctionCallOutput():
                item.kind, item.call_id, item.text = given.type, given.call_id, given.output
                result = conversation_pb2.ToolResult(call_id=given.call_id, output=given.output)
                request = ConverseRequest(tool_result=result)
                return self._ask(request, Pending("item", event.event_id, item))

    def _check_place(self, event: events.ItemCreate) -> None:
        before = event.previous_item_id
        items = self._state.items
        if before is None or event.item.type == "function_call_output":
            return
        if before == "root":
            before = None
        elif items.get(before) is None:
            raise EventError(
                "item_create_invalid_previous_item_id",
                f"Error adding item: there is no item '{before[:100]}' to put it after.",
                param="previous_item_id",
            )
        waiting = [
            pending.item.item_id
            for pending in self._state.pending.values()
            if pending.asked == "item" and pending.item is not None
        ]
        last = waiting[-1] if waiting else items.last_id
        if before not in (last, items.last_id):
            raise not_supported(
                "previous_item_id", "Items can be added at the end of the conversation only."
            )

    def _message(self, item: Item, given: events.Message, event_id: str | None) -> Outcome:
        item.role = given.role
        texts, audio, place = [], b"", ""
        for index, part in enumerate(given.content):
            param = f"item.content[{index}]"
            if part.type == "input_image":
                raise not_supported(f"{param}.type", "Images are not supported.")
            if (given.role == "assistant") != part.type.startswith("output") and (
                part.type != "text"
            ):
                raise EventError(
                    "invalid_value",
                    f"Invalid value: '{part.type}'. It is not a part of a message of the "
                    f"{given.role}.",
                    param=f"{param}.type",
                )
            text = part.transcript if part.type.endswith("audio") else part.text
            if text is None and part.type == "input_audio" and part.audio is not None:
                place = place or f"{param}.audio"
                audio += audio_bytes(part.audio, f"{param}.audio")
            elif text is None:
                field = "transcript" if part.type.endswith("audio") else "text"
                raise EventError(
                    "missing_required_parameter",
                    f"Missing required parameter: '{param}.{field}'.",
                    param=f"{param}.{field}",
                )
            else:
                texts.append(text)
        kinds = {part.type for part in given.content}
        item.content = _content(given.role, has_audio="input_audio" in kinds)
        if audio:
            if texts:
                raise not_supported(
                    "item.content", "A message holds text or a recording, not both."
                )
            audio_format = self._state.wanted.input_format
            return Outcome(recording=Recording(audio, audio_format, place, item, event_id))
        item.text = "\n".join(texts)
        return self.add_turn(item, item.text, event_id)

    def add_turn(self, item: Item, text: str, event_id: str | None) -> Outcome:
        """Adds an item whose words are known."""
        if not text.strip():
            raise EventError(
                "invalid_value", "The item has no words.", param="item.content", event_id=event_id
            )
        if len(text) > events.MAX_TEXT_CHARACTERS:
            raise EventError(
                "string_above_max_length",
                f"The item has {len(text)} characters: at most {events.MAX_TEXT_CHARACTERS} fit.",
                param="item.content",
                event_id=event_id,
            )
        turn = conversation_pb2.AddTurn(role=_ROLES[item.role], text=text)
        return self._ask(ConverseRequest(add_turn=turn), Pending("item", event_id, item))

    def retrieve(self, event: events.ItemRetrieve) -> Outcome:
        """Shows an item."""
        item = self.item(event.item_id, "retrieve").to_object()
        return Outcome([{"type": "conversation.item.retrieved", "item": item}])

    def truncate(self, event: events.ItemTruncate) -> Outcome:
        """An item was heard so far, and is played no more."""
        state = self._state
        item = self.item(event.item_id, "truncate")
        if item.kind != "message" or item.role != "assistant" or item.content != "output_audio":
            raise EventError(
                "invalid_value",
                "Only the assistant's spoken messages can be truncated.",
                param="item_id",
            )
        if event.audio_end_ms > item.audio_ms:
            raise EventError(
                "invalid_value",
                f"Audio content of {item.audio_ms}ms is already shorter than "
                f"{event.audio_end_ms}ms",
                param="audio_end_ms",
            )
        outcome = Outcome(
            [
                {
                    "type": "conversation.item.truncated",
                    "item_id": item.item_id,
                    "content_index": 0,
                    "audio_end_ms": event.audio_end_ms,
                }
            ]
        )
        self._heard(item, event.audio_end_ms, outcome)
        if state.answer is not None and state.answer.utterance_id == item.utterance_id:
            state.answer.cancelled_by_client = True
        return outcome

    def _heard(self, item: Item, audio_ms: int, outcome: Outcome) -> None:
        """The client plays no more of an item, and has played so much."""
        state, utterance = self._state, item.utterance_id
        if not utterance:
            return
        reported_soon = state.playout.heard_until(utterance, audio_ms)
        if state.unheard == utterance and utterance not in state.stopped:
            outcome.requests.append(ConverseRequest(interrupt=conversation_pb2.Interrupt()))
        elif state.unheard != utterance or not reported_soon:
            played = audio_ms * state.config.output_rate_hz // 1000
            report = conversation_pb2.Playback(
                utterance_id=utterance, played_samples=played, finished=True
            )
            outcome.requests.append(ConverseRequest(playback=report))

    def delete(self, event: events.ItemDelete) -> Outcome:
        """Removes an item."""
        state = self._state
        item = self.item(event.item_id, "delete")
        if item.turn is not None:
            request = ConverseRequest(delete_turn=conversation_pb2.DeleteTurn(turn_index=item.turn))
            return self._ask(request, Pending("delete", event.event_id, item))
        if not item.utterance_id:
            raise EventError(
                "item_delete_invalid_item_id",
                "Error deleting item: its words are not known yet. Delete it once they are.",
                param="item_id",
            )
        # Nothing of it was heard, and so it is not in the history.
        outcome = Outcome(state.remove_item(item.item_id))
        self._heard(item, 0, outcome)
        return outcome

    def item(self, item_id: str, what: str) -> Item:
        """An item by its id; `what` is for the error."""
        item = self._state.items.get(item_id)
        if item is None:
            raise EventError(
                f"item_{what}_invalid_item_id",
                f"Error: there is no item '{item_id[:100]}' to {what}.",
                param="item_id",
            )
        return item

    def _ask(self, request: ConverseRequest, pending: Pending) -> Outcome:
        return Outcome(requests=[self._state.ask(request, pending)])


def _content(role: str, *, has_audio: bool) -> Content:
    if role == "assistant":
        return "output_text"
    return "input_audio" if has_audio else "input_text"
