"""The pieces of what the LLM reads."""

from __future__ import annotations

from dataclasses import dataclass

from minmo.v1 import llm_pb2
from minmo.v1.common_pb2 import FloatMatrix, Role

_CHARACTERS_A_TOKEN = 3


@dataclass(frozen=True)
class Made:
    """What the LLM read of an item's last positions, and made of it there: rows of `row_bytes`."""

    embeddings: bytes
    hidden_states: bytes
    row_bytes: int

    @property
    def rows(self) -> int:
        """Positions."""
        return len(self.hidden_states) // self.row_bytes


@dataclass
class Item:
    """A piece of what the LLM reads.

    Attributes:
        part: as it is sent.
        size: in positions, estimated until it has been read.
        asked: whether these are words of the user.
        made: what the LLM made of them, where the voice is to read that.
    """

    part: llm_pb2.PromptPart
    size: int
    asked: bool = False
    made: Made | None = None


def role_start(role: Role.ValueType) -> Item:
    """Opens a turn."""
    return Item(llm_pb2.PromptPart(role_start=role), 3)


def turn_end() -> Item:
    """Closes the turn."""
    return Item(llm_pb2.PromptPart(turn_end=llm_pb2.TurnEnd()), 2)


def interruption() -> Item:
    """Marks that the user cut the assistant off."""
    return Item(llm_pb2.PromptPart(interruption=llm_pb2.Interruption()), 4)


def text(content: str, *, asked: bool = False) -> Item:
    """Text; `asked` says that these are words of the user."""
    estimate = len(content.encode()) // _CHARACTERS_A_TOKEN + 1
    return Item(llm_pb2.PromptPart(text=content), estimate, asked)


def embeddings(matrix: FloatMatrix) -> Item:
    """Speech embeddings of the user's, one row a position."""
    return Item(llm_pb2.PromptPart(embeddings=matrix), matrix.rows, asked=True)


def token(token_id: int) -> Item:
    """A token that the LLM made."""
    return Item(llm_pb2.PromptPart(tokens=llm_pb2.TokenIds(ids=[token_id])), 1)
