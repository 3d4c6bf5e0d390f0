"""What a client asks for in the middle of a conversation, checked.

What is wrong with it raises `RefusedError`: the client is told, and the stream goes on.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

from minmo.rpc.errors import StatusError
from minmo.v1 import common_pb2, conversation_pb2
from services.orchestrator import checks
from services.orchestrator.manner import Wishes
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import StoredTurn

MAX_TEXT_CHARACTERS: Final = 4000
MAX_REQUEST_ID_CHARACTERS: Final = 128
_ROLES: Final = {
    common_pb2.ROLE_USER: "user",
    common_pb2.ROLE_ASSISTANT: "assistant",
    common_pb2.ROLE_SYSTEM: "system",
}


@dataclass(frozen=True)
class Request:
    """What the client asks for.

    Attributes:
        message: as it came.
        position: where the user's audio was then, in samples at 16 kHz.
        arrived: when it came (monotonic seconds).
    """

    message: conversation_pb2.ConverseRequest
    position: int
    arrived: float

    @property
    def kind(self) -> str:
        """What it carries."""
        return str(self.message.WhichOneof("message"))


class RefusedError(Exception):
    """A request that is not carried out; `reason` and `field` are the contract's."""

    def __init__(self, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


def request_id(request: conversation_pb2.ConverseRequest) -> str:
    """The id that what follows carries."""
    length = len(request.request_id)
    if length > MAX_REQUEST_ID_CHARACTERS:
        raise RefusedError(
            "TOO_LONG",
            f"request_id has {length} characters; at most {MAX_REQUEST_ID_CHARACTERS} are allowed",
            "request_id",
        )
    return request.request_id


def text(value: str, field: str, *, may_be_empty: bool = False) -> str:
    """A text of a turn, without space around it."""
    words = value.strip()
    if not words and not may_be_empty:
        raise RefusedError("BAD_REQUEST", f"{field} is empty", field)
    if len(words) > MAX_TEXT_CHARACTERS:
        raise RefusedError(
            "TOO_LONG",
            f"{field} has {len(words)} characters; at most {MAX_TEXT_CHARACTERS} are allowed",
            field,
        )
    return words


def settings(update: conversation_pb2.UpdateSettings) -> Settings:
    """The settings that the session is to have."""
    try:
        return checks.session_settings(update.settings)
    except StatusError as error:
        raise _refused("BAD_SETTINGS", error, "update_settings.") from None


def added_turn(add: conversation_pb2.AddTurn, index: int) -> StoredTurn:
    """The turn that the history is to have, under the number `index`."""
    role = _ROLES.get(add.role)
    if role is None:
        raise RefusedError(
            "BAD_REQUEST",
            "add_turn.role must be ROLE_USER, ROLE_ASSISTANT or ROLE_SYSTEM; ToolResult adds a "
            "tool's turn",
            "add_turn.role",
        )
    if add.HasField("tool_call"):
        return _added_call(add, index)
    words = text(add.text, "add_turn.text")
    generated = words if role == "assistant" else ""
    return StoredTurn(index, role, words, generated, started=time.time(), waits=role == "user")


def _added_call(add: conversation_pb2.AddTurn, index: int) -> StoredTurn:
    call = add.tool_call
    for field, problem in (
        ("role", add.role != common_pb2.ROLE_ASSISTANT and "must be ROLE_ASSISTANT for a call"),
        ("text", add.text and "must be empty for a call"),
        ("tool_call.call_id", not 0 < len(call.call_id) <= 64 and "must have 1 to 64 characters"),
        ("tool_call.name", not checks.is_tool_name(call.name) and "is not the name of a tool"),
    ):
        if problem:
            raise RefusedError("BAD_REQUEST", f"add_turn.{field} {problem}", f"add_turn.{field}")
    field = "add_turn.tool_call.arguments_json"
    try:
        arguments = json.loads(text(call.arguments_json, field))
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise RefusedError("BAD_REQUEST", f"{field} is not a JSON object", field)
    return StoredTurn(
        index,
        "assistant",
        "",
        started=time.time(),
        call_id=call.call_id,
        call_name=call.name,
        call_arguments=json.dumps(arguments, ensure_ascii=False),
    )


def wishes(create: conversation_pb2.CreateResponse, session: Settings) -> Wishes:
    """How an answer is to differ from the others."""
    try:
        choice = None
        if create.HasField("tool_choice"):
            choice = checks.tool_choice(
                create.tool_choice, session.tools, "create_response.tool_choice"
            )
        return Wishes(
            instructions=checks.instructions(
                create.instructions, "create_response.instructions"
            ).strip(),
            max_tokens=checks.answer_tokens(
                create.max_answer_tokens, "create_response.max_answer_tokens"
            ),
            tool_choice=choice,
            text_only=create.text_only,
        )
    except StatusError as error:
        reason = "TOO_LONG" if error.reason == "TOO_LONG" else "BAD_REQUEST"
        raise _refused(reason, error) from None


def _refused(reason: str, error: StatusError, prefix: str = "") -> RefusedError:
    field = next(iter(error.violations), "")
    return RefusedError(reason, error.message, prefix + field)
