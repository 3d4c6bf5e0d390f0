"""A session from before, as items and settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from minmo.v1 import common_pb2, conversation_pb2
from services.gateway.items import Item, Items
from services.gateway.session import SessionConfig


def restore(config: SessionConfig, session: conversation_pb2.Session) -> SessionConfig:
    """Settings with what a session has stored; the rest is as the connection asks for."""
    settings = session.settings
    return replace(
        config,
        instructions=settings.system_prompt,
        voice=settings.voice,
        instruct=settings.instruct,
        max_output_tokens=settings.max_answer_tokens or "inf",
        temperature=settings.temperature,
        seed=settings.seed,
        text_only=settings.text_only,
    )


def items_of(session: conversation_pb2.Session, items: Items) -> Iterator[Item]:
    """The turns of a session as items, oldest first; `items` gives their ids."""
    for turn in session.turns:
        item_id = items.new_id(turn.index)
        item = Item(item_id, text=turn.text, turn=turn.index)
        call = turn.tool_call
        match turn.role:
            case common_pb2.ROLE_TOOL:
                item.kind, item.call_id = "function_call_output", call.call_id
            case common_pb2.ROLE_ASSISTANT if call.call_id:
                item.kind, item.call_id = "function_call", call.call_id
                item.name, item.text = call.name, call.arguments_json
            case common_pb2.ROLE_ASSISTANT:
                item.role = "assistant"
                item.content = "output_audio" if turn.audio_ms else "output_text"
                item.audio_ms = turn.audio_ms
            case common_pb2.ROLE_SYSTEM:
                item.role = "system"
            case _:
                item.role = "user"
                item.content = "input_audio" if turn.audio_ms else "input_text"
        yield item
