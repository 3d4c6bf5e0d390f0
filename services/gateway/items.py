"""The items of a conversation, and the turns of the session that they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["message", "function_call", "function_call_output"]
Status = Literal["completed", "incomplete", "in_progress"]
Content = Literal["input_text", "input_audio", "output_text", "output_audio"]

MAX_ITEMS = 4096
"""Items that are remembered; the oldest are forgotten here, not in the session."""


@dataclass
class Item:
    """An item.

    Attributes:
        item_id: names it to the client.
        kind: the protocol's type.
        role: whose it is, for messages.
        content: type of its one part, for messages.
        text: words of it, arguments of a call, or what a call returned; None while unknown.
        turn: number of the turn that it is (or is part of); None while unknown.
        utterance_id: of the assistant's turn.
        audio_ms: audio of it that was sent.
    """

    item_id: str
    kind: Kind = "message"
    role: str = ""
    content: Content = "input_text"
    status: Status = "completed"
    text: str | None = None
    turn: int | None = None
    utterance_id: str = ""
    call_id: str = ""
    name: str = ""
    audio_ms: int = 0

    def to_object(self) -> dict[str, Any]:
        """The protocol's item."""
        made: dict[str, Any] = {
            "id": self.item_id,
            "object": "realtime.item",
            "type": self.kind,
            "status": self.status,
        }
        match self.kind:
            case "message":
                made |= {"role": self.role, "content": self._parts()}
            case "function_call":
                made |= {"call_id": self.call_id, "name": self.name, "arguments": self.text or ""}
            case "function_call_output":
                made |= {"call_id": self.call_id, "output": self.text or ""}
        return made

    def _parts(self) -> list[dict[str, Any]]:
        if self.role == "assistant" and self.text is None:
            return []
        key = "transcript" if self.content.endswith("audio") else "text"
        return [{"type": self.content, key: self.text}]


class Items:
    """The items in their order."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._used: set[str] = set()

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)

    @property
    def last_id(self) -> str | None:
        """The latest item."""
        return next(reversed(self._items), None)

    def get(self, item_id: str) -> Item | None:
        """An item by its id."""
        return self._items.get(item_id)

    def knows(self, item_id: str) -> bool:
        """Whether an item has, or had, this id."""
        return item_id in self._used

    def of_turn(self, turn: int) -> list[Item]:
        """The items that a turn consists of."""
        return [item for item in self._items.values() if item.turn == turn]

    def of_utterance(self, utterance_id: str) -> Item | None:
        """The assistant's item that is spoken in an utterance."""
        return next(
            (
                item
                for item in reversed(self._items.values())
                if item.utterance_id == utterance_id and item.kind == "message"
            ),
            None,
        )

    def new_id(self, turn: int) -> str:
        """An id for what will probably be this turn: ``item_7``, or ``item_7.2`` if that is used.

        A turn has several when the user went on before anything was heard of the answer.
        """
        name = f"item_{turn}"
        number = 2
        while name in self._used:
            name = f"item_{turn}.{number}"
            number += 1
        self._used.add(name)
        return name

    def add(self, item: Item) -> str | None:
        """Puts an item at the end; returns the id of the one before."""
        before = self.last_id
        self._used.add(item.item_id)
        self._items[item.item_id] = item
        while len(self._items) > MAX_ITEMS:
            oldest = next(iter(self._items))
            del self._items[oldest]
            self._used.discard(oldest)
        return before

    def before(self, item_id: str) -> str | None:
        """The item before another."""
        previous = None
        for known in self._items:
            if known == item_id:
                return previous
            previous = known
        return None

    def remove(self, item_id: str) -> None:
        """Forgets an item; its id is not used again."""
        self._items.pop(item_id, None)
