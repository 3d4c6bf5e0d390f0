"""The history as the LLM reads it."""

from __future__ import annotations

from collections.abc import Sequence

from minmo.v1.common_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER
from services.orchestrator import items
from services.orchestrator.items import Item
from services.orchestrator.store import StoredTurn


def prompt(system_prompt: str, turns: Sequence[StoredTurn], *, limit: int) -> list[Item]:
    """What the LLM reads before the next turn: instructions and as many turns as fit.

    Args:
        system_prompt: who the assistant is.
        turns: the history, oldest first. Turns without words are left out.
        limit: positions that the whole may take; the oldest turns are left out first.
    """
    head = [
        items.role_start(ROLE_SYSTEM),
        items.text(system_prompt),
        items.turn_end(),
    ]
    budget = limit - sum(item.size for item in head)
    kept: list[list[Item]] = []
    for turn in reversed([turn for turn in turns if turn.text]):
        told = _turn(turn)
        budget -= sum(item.size for item in told)
        if budget < 0:
            break
        kept.append(told)
    return head + [item for told in reversed(kept) for item in told]


def _turn(turn: StoredTurn) -> list[Item]:
    role = ROLE_USER if turn.role == "user" else ROLE_ASSISTANT
    told = [items.role_start(role), items.text(turn.text)]
    if turn.outcome == "interrupted":
        told.append(items.interruption())
    return [*told, items.turn_end()]
