"""Sessions, their settings and their turns, as the contract tells them to clients."""

from __future__ import annotations

from dataclasses import asdict

from google.protobuf.timestamp_pb2 import Timestamp

from minmo.v1 import common_pb2, conversation_pb2
from services.orchestrator.session_settings import Settings
from services.orchestrator.store import StoredSession, StoredTurn

_ROLES = {
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
    "system": common_pb2.ROLE_SYSTEM,
    "tool": common_pb2.ROLE_TOOL,
}
_OUTCOMES = {
    "completed": conversation_pb2.TURN_OUTCOME_COMPLETED,
    "interrupted": conversation_pb2.TURN_OUTCOME_INTERRUPTED,
    "failed": conversation_pb2.TURN_OUTCOME_FAILED,
}


def session(stored: StoredSession) -> conversation_pb2.Session:
    """A session without its turns."""
    return conversation_pb2.Session(
        session_id=stored.session_id,
        settings=settings(stored.settings),
        create_time=_time(stored.created),
        update_time=_time(stored.updated),
        expire_time=_time(stored.expires),
        turn_count=stored.turn_count,
        streaming=stored.streaming,
    )


def settings(stored: Settings) -> conversation_pb2.SessionSettings:
    """The settings of a session; what is the server's default stays unset."""
    told = conversation_pb2.SessionSettings(**asdict(stored))
    for field in ("turn_detection", "tool_choice"):
        if not getattr(told, field).ByteSize():
            told.ClearField(field)
    return told


def turn(stored: StoredTurn) -> conversation_pb2.Turn:
    """A turn as it stands in the history."""
    assistant = stored.role == "assistant"
    return conversation_pb2.Turn(
        index=stored.index,
        role=_ROLES[stored.role],
        text=stored.text,
        generated_text=stored.generated_text,
        outcome=_OUTCOMES.get(stored.outcome, conversation_pb2.TURN_OUTCOME_UNSPECIFIED)
        if assistant
        else conversation_pb2.TURN_OUTCOME_UNSPECIFIED,
        start_time=_time(stored.started),
        audio_ms=stored.audio_ms,
        tool_call=tool_call(stored) if stored.call_id else None,
    )


def tool_call(stored: StoredTurn) -> conversation_pb2.ToolCall:
    """The call of a tool that a turn is, or whose result it is."""
    return conversation_pb2.ToolCall(
        utterance_id=stored.utterance_id,
        call_id=stored.call_id,
        name=stored.call_name,
        arguments_json=stored.call_arguments,
        turn_index=stored.index if stored.is_call else 0,
    )


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
