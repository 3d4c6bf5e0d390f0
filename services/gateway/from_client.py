"""What a client's event means to the orchestrator: translation alone, no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest
from services.gateway import client_events as events
from services.gateway.answer_requests import AnswerRequests
from services.gateway.audio_input import Microphone
from services.gateway.errors import EventError, not_supported
from services.gateway.item_requests import ItemRequests
from services.gateway.parsing import audio_bytes
from services.gateway.state import Outcome, Pending, Recording, State

CHUNK_SECONDS = 1.0
"""Longest audio in one message to the orchestrator."""
_SAMPLE_BYTES = 2


class FromClient:
    """Translates events of one connection.

    Args:
        state: of the connection.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._items = items = ItemRequests(state)
        answers = AnswerRequests(state)
        self._microphone = Microphone(state)
        self._acts: dict[type[events.ClientEvent], Callable[[Any], Outcome]] = {
            events.SessionUpdate: self._session_update,
            events.Append: self._append,
            events.Commit: self._commit,
            events.Clear: self._clear,
            events.ItemCreate: items.create,
            events.ItemRetrieve: items.retrieve,
            events.ItemTruncate: items.truncate,
            events.ItemDelete: items.delete,
            events.ResponseCreate: answers.create,
            events.ResponseCancel: answers.cancel,
            events.OutputClear: self._output_clear,
            events.Playback: self._playback,
        }

    def translate(self, event: events.ClientEvent) -> Outcome:
        """What follows from an event.

        Raises:
            EventError: it cannot be carried out; nothing has changed.
        """
        return self._acts[type(event)](event)

    def recognised(self, recording: Recording, text: str) -> Outcome:
        """A recording has been recognised: it is added as what was said. Raises `EventError`."""
        recording.item.text = text
        return self._items.add_turn(recording.item, text, recording.event_id)

    # --- settings

    def _session_update(self, event: events.SessionUpdate) -> Outcome:
        state = self._state
        before, wanted = state.wanted, state.wanted.updated(event.session)
        formats = (before.input_format, before.output_format)
        changed = formats != (wanted.input_format, wanted.output_format)
        if changed and (state.has_heard or len(state.items) or state.answer is not None):
            raise not_supported(
                "session.audio", "The formats can be changed before the first audio or item only."
            )
        state.wanted = wanted
        if not state.stream_open:
            state.config = wanted
            return Outcome([state.session_event("session.updated")])
        outcome = Outcome(reopen=changed)
        waits = any(pending.asked == "settings" for pending in state.pending.values())
        if waits or before.to_proto() != wanted.to_proto():
            request = ConverseRequest(
                update_settings=conversation_pb2.UpdateSettings(settings=wanted.to_proto())
            )
            pending = Pending("settings", event.event_id, config=wanted)
            outcome.requests.append(state.ask(request, pending))
        else:
            is_new = wanted.minmo and not state.config.minmo
            state.config = wanted
            outcome.events.append(state.session_event("session.updated"))
            if is_new and state.ready is not None:
                outcome.events.append(state.ready_event())
        return outcome

    # --- audio

    def _append(self, event: events.Append) -> Outcome:
        pcm = self._microphone.pcm(audio_bytes(event.audio, "audio"), "audio")
        self._state.has_heard = self._state.has_heard or bool(pcm)
        size = int(CHUNK_SECONDS * self._state.wanted.input_rate_hz) * _SAMPLE_BYTES
        return Outcome(
            requests=[
                ConverseRequest(audio=common_pb2.AudioChunk(data=pcm[start : start + size]))
                for start in range(0, len(pcm), size)
            ]
        )

    def _commit(self, event: events.Commit) -> Outcome:
        request = ConverseRequest(commit_input=conversation_pb2.CommitInput())
        return Outcome(requests=[self._state.ask(request, Pending("commit", event.event_id))])

    def _clear(self, event: events.Clear) -> Outcome:
        request = ConverseRequest(clear_input=conversation_pb2.ClearInput())
        return Outcome(requests=[self._state.ask(request, Pending("clear", event.event_id))])

    def _output_clear(self, _: events.OutputClear) -> Outcome:
        raise not_supported(
            "type",
            "output_audio_buffer.clear is for WebRTC, where the server holds the audio. Stop your "
            "loudspeaker, then send conversation.item.truncate.",
        )

    def _playback(self, event: events.Playback) -> Outcome:
        item = self._items.item(event.item_id, "play")
        if not item.utterance_id:
            raise EventError("invalid_value", "The item has no audio.", param="item_id")
        self._state.playout.client_reports = True
        report = conversation_pb2.Playback(
            utterance_id=item.utterance_id,
            played_samples=event.played_samples,
            finished=event.finished,
        )
        return Outcome(requests=[ConverseRequest(playback=report)])
