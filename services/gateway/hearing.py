"""The user's turns, as events of the protocol: translation alone, no I/O."""

from __future__ import annotations

from collections.abc import Mapping

from minmo.v1.conversation_pb2 import ConverseResponse
from services.gateway.answer import Event
from services.gateway.items import Item
from services.gateway.state import Pending, State


class Hearing:
    """What the user does.

    Args:
        state: of the connection.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def speech_started(self, response: ConverseResponse) -> list[Event]:
        """Somebody speaks."""
        state = self._state
        detection = state.config.turn_detection
        if detection is None:
            return []
        position = response.event.audio_ms + state.offset_ms
        if state.unheard is not None and detection.interrupt_response is not False:
            # Clients fall silent at the event, so it waits until the answer is stopped; when the
            # user only says "mhm", it never comes.
            state.speech_ms = position
            return []
        return self.begin_speech(position)

    def begin_speech(self, position: int) -> list[Event]:
        """The user has the floor from `position` on, in milliseconds."""
        state = self._state
        state.speech_ms = None
        if state.user_item:
            return []
        state.user_item, state.partial = state.items.new_id(state.next_turn), ""
        state.speech_start_ms = position
        return [
            {
                "type": "input_audio_buffer.speech_started",
                "audio_start_ms": position,
                "item_id": state.user_item,
            }
        ]

    def release_speech(self) -> list[Event]:
        """Speech over the answer has taken the floor, or outlasted the answer."""
        position = self._state.speech_ms
        return [] if position is None else self.begin_speech(position)

    def speech_stopped(self, _: ConverseResponse) -> list[Event]:
        """Nobody speaks any more, for now: the turn may go on."""
        self._state.speech_ms = None
        return []

    def turn_ended(self, response: ConverseResponse) -> list[Event]:
        """The user's turn has ended; its words are to come."""
        state = self._state
        position = response.event.audio_ms + state.offset_ms
        events: list[Event] = []
        detected = state.config.turn_detection is not None
        if detected:
            events += self.begin_speech(position)
        item_id = state.user_item or state.items.new_id(state.next_turn)
        state.user_item = ""
        if detected:
            events.append(
                {
                    "type": "input_audio_buffer.speech_stopped",
                    "audio_end_ms": position,
                    "item_id": item_id,
                }
            )
        item = Item(item_id, role="user", content="input_audio")
        item.audio_ms = max(0, position - state.speech_start_ms)
        state.speech_start_ms = position
        events.append(
            {
                "type": "input_audio_buffer.committed",
                "previous_item_id": state.items.last_id,
                "item_id": item_id,
            }
        )
        events += state.add_item(item)
        state.committed.append(item)
        pending = state.pending.get(response.request_id)
        if pending is not None and pending.asked == "commit":
            state.pending[response.request_id] = Pending("commit", pending.event_id, item)
        if state.config.creates_responses:
            state.unheard = ""
        return events

    def user_text(self, response: ConverseResponse) -> list[Event]:
        """The words of a turn, so far or all of them."""
        said = response.user_text
        state = self._state
        if not said.final:
            return self._partial(said.text)
        state.saw_turn(said.turn_index)
        item = self._committed(response.request_id)
        events: list[Event] = []
        if item is None:
            events += self.drop_parts(said.turn_index)
            item = Item(
                state.items.new_id(said.turn_index),
                role="user",
                content="input_audio",
                turn=said.turn_index,
            )
            events += state.add_item(item)
        events += self._understood(item, said.turn_index, said.text)
        if state.config.creates_responses:
            events += state.begin_answer(response.request_id)
            state.unheard = state.unheard or ""
        return events

    def _committed(self, request_id: str) -> Item | None:
        """The turn whose words have come, out of those that wait for them."""
        committed = self._state.committed
        pending = self._state.pending.pop(request_id, None)
        if pending is not None and pending.item in committed:
            committed.remove(pending.item)
            return pending.item
        return committed.pop() if committed else None

    def _understood(self, item: Item, turn: int, text: str) -> list[Event]:
        """The words of an item are known; what the client thought it to be before is corrected."""
        state = self._state
        events: list[Event] = []
        # The user went on before the words of these were known: the words are in this one.
        if state.config.turn_detection is not None:
            for part in state.committed:
                events += self._transcript(part, "")
                events += state.remove_item(part.item_id)
            state.committed.clear()
        earlier = [part for part in state.items.of_turn(turn) if part is not item]
        known = " ".join(part.text or "" for part in earlier)
        if known and text.startswith(known):
            text = text[len(known) :].strip()
        else:
            events += self.drop_parts(turn, keep=item)
        item.turn = turn
        return [*events, *self._transcript(item, text)]

    def drop_parts(self, turn: int, *, keep: Item | None = None) -> list[Event]:
        """Forgets the items of a turn, but for one."""
        events: list[Event] = []
        for part in self._state.items.of_turn(turn):
            if part is not keep:
                events += self._state.remove_item(part.item_id)
        return events

    def _transcript(self, item: Item, text: str) -> list[Event]:
        item.text = text
        self._state.partial = ""
        if not self._transcribes:
            return []
        return [
            {
                "type": "conversation.item.input_audio_transcription.completed",
                "item_id": item.item_id,
                "content_index": 0,
                "transcript": text,
                "usage": {"type": "duration", "seconds": item.audio_ms / 1000},
            }
        ]

    def _partial(self, text: str) -> list[Event]:
        """Words so far. The protocol's pieces cannot be taken back, so only what adds is sent."""
        state = self._state
        waiting = state.committed[-1].item_id if state.committed else ""
        item_id = state.user_item or waiting
        if not (item_id and self._transcribes and text.startswith(state.partial)):
            return []
        delta, state.partial = text[len(state.partial) :], text
        if not delta:
            return []
        return [
            {
                "type": "conversation.item.input_audio_transcription.delta",
                "item_id": item_id,
                "content_index": 0,
                "delta": delta,
            }
        ]

    @property
    def _transcribes(self) -> bool:
        return self._state.config.transcription is not None or self._state.config.minmo

    def nothing_said(self, response: ConverseResponse) -> list[Event]:
        """A turn had no words."""
        state = self._state
        item = self._committed(response.request_id)
        if state.unheard == "" and state.answer is None:
            state.unheard = None
        events: list[Event] = []
        if item is not None:
            events += self._transcript(item, "")
            events += state.remove_item(item.item_id)
        return [*events, *self.release_speech()]

    def not_understood(self, request_id: str, error: Mapping[str, str]) -> list[Event]:
        """The words of a turn cannot be had: it is in no history."""
        item = self._committed(request_id)
        if item is None:
            return []
        events = self._state.remove_item(item.item_id)
        if not self._transcribes:
            return events
        failed = {
            "type": "conversation.item.input_audio_transcription.failed",
            "item_id": item.item_id,
            "content_index": 0,
            "error": {**error, "param": None},
        }
        return [failed, *events]

    def input_cleared(self, response: ConverseResponse) -> list[Event]:
        """What was heard is forgotten."""
        state = self._state
        state.pending.pop(response.request_id, None)
        state.user_item, state.partial, state.speech_ms = "", "", None
        return [{"type": "input_audio_buffer.cleared"}]
