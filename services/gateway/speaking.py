"""The assistant's answers, as events of the protocol: translation alone, no I/O."""

from __future__ import annotations

from collections.abc import Mapping

from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseResponse, TurnOutcome
from services.gateway.answer import Event
from services.gateway.errors import SERVER_ERROR
from services.gateway.hearing import Hearing
from services.gateway.items import Item
from services.gateway.state import Outcome, State

_OUTCOMES = {
    number: name.removeprefix("TURN_OUTCOME_").lower() for name, number in TurnOutcome.items()
}


class Speaking:
    """What the assistant does.

    Args:
        state: of the connection.
        hearing: what the user does; speech over an answer is the user's turn or is not.
    """

    def __init__(self, state: State, hearing: Hearing) -> None:
        self._state = state
        self._hearing = hearing

    def audio_due(self, audio: conversation_pb2.AudioOutput) -> list[Event]:
        """A piece of audio that is to be sent now."""
        answer = self._state.answer
        if answer is None or answer.utterance_id != audio.utterance_id:
            return []
        events = answer.sound(audio.data)
        return [*events, *self._state.end("completed")] if audio.final else events

    def answer_of(self, utterance_id: str, request_id: str) -> list[Event]:
        """Makes the open response that of an utterance; opens one if need be."""
        state = self._state
        events: list[Event] = []
        answer = state.answer
        if answer is not None and answer.utterance_id not in ("", utterance_id):
            events += state.end("completed")
            answer = None
        if answer is None or not answer.is_of(utterance_id, request_id):
            if state.items.of_utterance(utterance_id) is not None:
                return events  # it has ended for the client
            events += state.begin_answer(request_id)
            answer = state.answer
        assert answer is not None, "it has just begun"
        if not answer.utterance_id:
            answer.utterance_id, answer.turn = utterance_id, state.next_turn
        state.unheard = utterance_id
        state.pending.pop(request_id, None)
        return events

    def started(self, response: ConverseResponse) -> list[Event]:
        """An answer's audio begins."""
        answer, event = self._state.answer, response.event
        if answer is not None and answer.utterance_id == event.utterance_id:
            answer.read_count = event.read_count
        return []

    def assistant_text(self, response: ConverseResponse) -> list[Event]:
        """More of what the assistant says."""
        said = response.assistant_text
        events = self.answer_of(said.utterance_id, response.request_id)
        answer = self._state.answer
        if answer is None or answer.utterance_id != said.utterance_id:
            return events
        return [*events, *answer.say(said.text, said.token_index)]

    def tool_call(self, response: ConverseResponse) -> list[Event]:
        """The assistant calls a tool."""
        call = response.tool_call
        state = self._state
        events = self.answer_of(call.utterance_id, response.request_id)
        if state.answer is None or state.answer.utterance_id != call.utterance_id:
            # The audio before it has been sent to its end: for the client this is another answer.
            events += state.begin_answer(response.request_id)
        assert state.answer is not None, "it has just begun"
        state.answer.utterance_id = call.utterance_id
        state.saw_turn(call.turn_index)
        events += state.answer.call(call.turn_index, call.call_id, call.name, call.arguments_json)
        return events

    def stop_playback(self, utterance_id: str, now: float) -> list[Event]:
        """An utterance is stopped while the client has audio of it."""
        self._state.playout.stop(utterance_id, now)
        state = self._state
        state.stopped.add(utterance_id)
        events = self._hearing.release_speech()
        item = state.items.of_utterance(utterance_id)
        if state.config.minmo and item is not None:
            events.append({"type": "minmo.stop_playback", "item_id": item.item_id})
        answer = state.answer
        if answer is not None and answer.utterance_id == utterance_id:
            events += state.cancel()
        return events

    def interrupted(self, response: ConverseResponse) -> list[Event]:
        """An answer was stopped, by the user or the client, whether or not anything was heard."""
        state = self._state
        events = self._hearing.release_speech()
        answer = state.answer
        # If it had an utterance, the report came before and has ended the response.
        if answer is not None and answer.is_of("", response.request_id):
            events += state.cancel()
        if state.unheard == "" and state.answer is None:
            state.unheard = None
        return events

    def report(self, response: ConverseResponse) -> Outcome:
        """An answer has been heard, or has ended in another way."""
        report, state = response.report, self._state
        outcome = Outcome()
        state.stopped.discard(report.utterance_id)
        answer, failure = state.answer, _failure(report)
        unspoken = not report.utterance_id
        announced = answer is not None and answer.is_of("", response.request_id)
        if failure is not None and unspoken and not announced:
            # It failed before the words of its question were known.
            outcome.events += self._hearing.not_understood(response.request_id, failure)
            if answer is None:
                outcome.events += state.begin_answer(response.request_id)
                answer = state.answer
        state.pending.pop(response.request_id, None)
        heard = report.outcome == TurnOutcome.TURN_OUTCOME_COMPLETED or report.heard_text.strip()
        item = state.items.of_utterance(report.utterance_id) if report.utterance_id else None
        if item is not None:
            # What was not heard is no turn.
            item.turn = report.assistant_turn_index if heard else None
            item.text = report.heard_text
        if heard:
            state.saw_turn(report.assistant_turn_index)
        if answer is not None and answer.is_of(report.utterance_id, response.request_id):
            answer.read_count = report.read_count or answer.read_count
            answer.token_count = max(answer.token_count, report.token_count)
            outcome.events += self._concluded(report.outcome, failure)
        if state.config.minmo:
            outcome.events.append(self._turn_report(report, item))
        if state.answer is None or state.unheard == report.utterance_id:
            state.unheard = None
        outcome.events += self._hearing.release_speech()
        return outcome

    def _concluded(self, outcome: int, failure: Mapping[str, str] | None) -> list[Event]:
        if failure is not None:
            return self._state.end("failed", error=failure)
        if outcome == TurnOutcome.TURN_OUTCOME_INTERRUPTED:
            return self._state.cancel()
        return self._state.end("completed")

    def _turn_report(self, report: conversation_pb2.TurnReport, item: Item | None) -> Event:
        users = self._state.items.of_turn(report.user_turn_index)
        return {
            "type": "minmo.turn_report",
            "item_id": item.item_id if item is not None else None,
            "user_item_id": users[-1].item_id if users else None,
            "utterance_id": report.utterance_id,
            "outcome": _OUTCOMES.get(report.outcome, "unspecified"),
            "heard_text": report.heard_text,
            "generated_text": report.generated_text,
            "first_audio_ms": report.first_audio_ms,
            "waterfall": [
                {"hop": span.hop, "start_ms": span.start_ms, "duration_ms": span.duration_ms}
                for span in report.waterfall
            ],
            "token_count": report.token_count,
            "audio_ms": report.audio_ms,
            "voice_compute_ms": report.voice_compute_ms,
            "generate_ms": report.generate_ms,
            "detail": report.detail,
        }


def _failure(report: conversation_pb2.TurnReport) -> dict[str, str] | None:
    """The protocol's error for an answer that failed."""
    if report.outcome != TurnOutcome.TURN_OUTCOME_FAILED:
        return None
    message = report.detail or "The answer could not be finished."
    return {"type": SERVER_ERROR, "code": "answer_failed", "message": message}
