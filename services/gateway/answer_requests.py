"""Answers that clients ask for, and stop: translation alone, no I/O."""

from __future__ import annotations

from typing import Any

from minmo.v1 import conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest
from services.gateway import client_events as events
from services.gateway import session
from services.gateway.errors import EventError, not_supported
from services.gateway.state import Outcome, Pending, State


class AnswerRequests:
    """Begins and stops answers.

    Args:
        state: of the connection.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def create(self, event: events.ResponseCreate) -> Outcome:
        """Asks for an answer."""
        state = self._state
        given = event.response or events.ResponseParameters()
        text_only = self._checked(given)
        if state.answer is not None or state.unheard == "":
            active = "the turn's" if state.answer is None else state.answer.response_id
            raise EventError(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {active}. Wait until "
                "the response is finished before creating a new one.",
            )
        limit = given.max_output_tokens
        wanted = conversation_pb2.CreateResponse(
            instructions=given.instructions or "",
            max_answer_tokens=0 if limit is None else session.answer_tokens(limit),
            text_only=bool(text_only),
        )
        if given.tool_choice is not None:
            wanted.tool_choice.CopyFrom(session.tool_choice(given.tool_choice))
        request = ConverseRequest(create_response=wanted)
        state.ask(request, Pending("response", event.event_id))
        answer = state.new_answer(
            request_id=request.request_id,
            metadata=given.metadata,
            text_only=text_only,
            max_tokens=None if limit is None else session.answer_tokens(limit),
        )
        state.pending[request.request_id] = Pending(
            "response", event.event_id, response_id=answer.response_id
        )
        state.answer = answer
        outcome = Outcome(answer.created())
        if state.unheard is None:
            state.unheard = ""
            outcome.requests.append(request)
        else:
            state.held_back = request
        return outcome

    def _checked(self, given: events.ResponseParameters) -> bool | None:
        """Raises `EventError` for what a single answer cannot have; returns whether it is text."""
        refused: dict[str, tuple[Any, str]] = {
            "conversation": (
                given.conversation not in (None, "auto"),
                "Answers outside of the conversation are not supported.",
            ),
            "input": (given.input is not None, "An answer takes the conversation as it stands."),
            "prompt": (given.prompt is not None, "Stored prompts are not supported."),
            "tools": (
                given.tools is not None and tuple(given.tools) != self._state.wanted.tools,
                "Tools are set by session.update, for all answers.",
            ),
            "temperature": (
                given.temperature is not None,
                "The temperature is set by session.minmo.temperature.",
            ),
        }
        for name, (refuse, why) in refused.items():
            if refuse:
                raise not_supported(f"response.{name}", why)
        wanted = self._state.wanted
        output = given.audio.output if given.audio is not None else None
        other = output.format if output is not None else None
        if other is not None and other.type != wanted.output_format:
            raise not_supported(
                "response.audio.output.format", "The format is set by session.update."
            )
        if output is not None and output.voice is not None:
            voice = output.voice.id if isinstance(output.voice, events.VoiceId) else output.voice
            if voice != wanted.voice:
                raise not_supported(
                    "response.audio.output.voice", "The voice is set by session.update."
                )
        if given.tool_choice is not None:
            session.check_tool_choice(given.tool_choice, wanted.tools, "response.tool_choice")
        if given.output_modalities is None:
            return None
        text_only = session.is_text_only(given.output_modalities)
        if wanted.text_only and not text_only:
            raise not_supported(
                "response.output_modalities",
                "The session's answers are text: ask for audio by session.update.",
            )
        return text_only

    def cancel(self, event: events.ResponseCancel) -> Outcome:
        """Stops the answer."""
        state = self._state
        answer = state.answer
        if answer is None or event.response_id not in (None, answer.response_id):
            raise EventError(
                "response_cancel_not_active", "Cancellation failed: no active response found"
            )
        if state.held_back is not None:
            state.pending.pop(answer.request_id, None)
            return Outcome(state.end("cancelled", reason="client_cancelled"))
        if answer.cancelled_by_client:
            return Outcome()
        answer.cancelled_by_client = True
        return Outcome(requests=[ConverseRequest(interrupt=conversation_pb2.Interrupt())])
