"""The history as the LLM reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minmo.v1.common_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_TOOL, ROLE_USER
from services.orchestrator import items
from services.orchestrator.items import Item
from services.orchestrator.store import StoredTurn
from services.orchestrator.tool_format import call_text, result_text

_ROLES = {
    "system": ROLE_SYSTEM,
    "user": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "tool": ROLE_TOOL,
}


def prompt(system_text: str, turns: Sequence[StoredTurn], *, limit: int) -> list[Item]:
    """What the LLM reads before the next turn: instructions and as many turns as fit.

    Args:
        system_text: who the assistant is, and what it may call.
        turns: the history, oldest first. Turns without words are left out.
        limit: positions that the whole may take; the oldest turns are left out first.
    """
    head = told_by_system(system_text)
    budget = limit - size_of(head)
    kept: list[list[Item]] = []
    for group in reversed(_groups(turns)):
        told = _told(group)
        budget -= size_of(told)
        if budget < 0:
            break
        kept.append(told)
    return head + [item for told in reversed(kept) for item in told]


def told(turns: Iterable[StoredTurn]) -> list[Item]:
    """Turns as the LLM reads them, one behind the other."""
    return [item for group in _groups(turns) for item in _told(group)]


def told_by_system(text: str) -> list[Item]:
    """What the LLM reads first."""
    return [items.role_start(ROLE_SYSTEM), items.text(text), items.turn_end()]


def told_by_user(text: str) -> list[Item]:
    """Words of the user as a turn."""
    return [items.role_start(ROLE_USER), items.text(text, asked=True), items.turn_end()]


def size_of(content: Iterable[Item]) -> int:
    """Positions that items take."""
    return sum(item.size for item in content)


def _groups(turns: Iterable[StoredTurn]) -> list[list[StoredTurn]]:
    """Turns that the LLM knows as one: what was said with its calls, and the results of calls."""
    groups: list[list[StoredTurn]] = []
    for turn in turns:
        if not turn.text and not turn.call_id:
            continue
        last = groups[-1][-1] if groups else None
        follows = last is not None and turn.role == last.role
        if follows and (turn.is_call or turn.role == "tool"):
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def _told(group: Sequence[StoredTurn]) -> list[Item]:
    told = [items.role_start(_ROLES[group[0].role])]
    for place, turn in enumerate(group):
        text = turn.text
        if turn.is_call:
            text = call_text(turn.call_name, turn.call_arguments)
        elif turn.role == "tool":
            text = result_text(turn.text)
        told.append(items.text(f"\n{text}" if place else text, asked=turn.role == "user"))
        if turn.outcome == "interrupted":
            told.append(items.interruption())
    return [*told, items.turn_end()]
