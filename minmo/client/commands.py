"""What a client of a conversation may ask for, besides speaking."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Literal

from minmo.v1 import common_pb2, conversation_pb2
from minmo.v1.conversation_pb2 import ConverseRequest, SessionSettings, ToolChoice

AddedRole = Literal["system", "user", "assistant"]

_ROLES: dict[AddedRole, common_pb2.Role.ValueType] = {
    "system": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}


class Commands(ABC):
    """The requests of a conversation.

    Each method sends one and returns its id as soon as it is sent; the events that follow from it
    carry that id, or a `Refused` does.

    Raises:
        NotConnectedError: from each method, there is no server to take the request now.
    """

    def __init__(self) -> None:
        self._request_numbers = itertools.count(1)

    async def send_text(self, text: str) -> str:
        """Sends what the user types, at most 4000 characters; it is answered as if it was said."""
        text_input = conversation_pb2.TextInput(text=text)
        return await self._ask(ConverseRequest(text=text_input))

    async def interrupt(self) -> str:
        """Tells that the user pressed stop: the assistant falls silent."""
        return await self._ask(ConverseRequest(interrupt=conversation_pb2.Interrupt()))

    async def update_settings(self, settings: SessionSettings) -> str:
        """Has the session behave otherwise from the next turn on; leads to `SettingsUpdated`.

        Args:
            settings: all of them; what is unset goes back to the server's default.
        """
        update = conversation_pb2.UpdateSettings(settings=settings)
        return await self._ask(ConverseRequest(update_settings=update))

    async def commit_input(self) -> str:
        """Ends the user's turn with the audio sent so far, where the client decides on turns."""
        return await self._ask(ConverseRequest(commit_input=conversation_pb2.CommitInput()))

    async def clear_input(self) -> str:
        """Has the server forget the audio since the last turn."""
        return await self._ask(ConverseRequest(clear_input=conversation_pb2.ClearInput()))

    async def create_response(
        self,
        *,
        instructions: str = "",
        max_answer_tokens: int = 0,
        tool_choice: ToolChoice | None = None,
        text_only: bool = False,
    ) -> str:
        """Asks for an answer to the history as it stands.

        Args:
            instructions: in the place of the system prompt, for this answer alone.
            max_answer_tokens: at most so many; 0 is the session's limit.
            tool_choice: for this answer; None is the session's.
            text_only: it is written, not spoken.
        """
        response = conversation_pb2.CreateResponse(
            instructions=instructions,
            max_answer_tokens=max_answer_tokens,
            tool_choice=tool_choice,
            text_only=text_only,
        )
        return await self._ask(ConverseRequest(create_response=response))

    async def add_turn(self, role: AddedRole, text: str) -> str:
        """Adds a turn to the history that nobody spoke; leads to `TurnAdded`."""
        turn = conversation_pb2.AddTurn(role=_ROLES[role], text=text)
        return await self._ask(ConverseRequest(add_turn=turn))

    async def delete_turn(self, turn_index: int) -> str:
        """Removes a turn from the history; leads to `TurnDeleted`."""
        deletion = conversation_pb2.DeleteTurn(turn_index=turn_index)
        return await self._ask(ConverseRequest(delete_turn=deletion))

    async def tool_result(self, call_id: str, output: str) -> str:
        """Tells what a tool returned; leads to `TurnAdded`. Then ask with `create_response`.

        Args:
            call_id: of the `ToolCall`.
            output: at most 4000 characters.
        """
        result = conversation_pb2.ToolResult(call_id=call_id, output=output)
        return await self._ask(ConverseRequest(tool_result=result))

    async def _ask(self, request: ConverseRequest) -> str:
        request.request_id = f"request-{next(self._request_numbers)}"
        await self._send(request)
        return request.request_id

    @abstractmethod
    async def _send(self, request: ConverseRequest) -> None:
        """Sends a request. Raises NotConnectedError."""
