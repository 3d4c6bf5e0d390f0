"""The user's words as the voice reads them first: what the LLM read of them, and made of it.

A spoken instruction ("say it sadly") reaches the voice this way (paper, section 3.1). Only the
words of the latest turn are kept, and of long ones only the end: the voice holds so many positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from minmo.v1 import llm_pb2
from minmo.v1.common_pb2 import FloatMatrix
from services.orchestrator.items import Item, Made

POSITIONS = 256
"""Positions at most; as speech embeddings of `mini` they are 12 s."""
_BEHIND = 16
_BYTES = 4


@dataclass(frozen=True)
class Query:
    """Embeddings and last hidden states `[positions, width]`, one row a position; maybe none."""

    embeddings: FloatMatrix
    hidden_states: FloatMatrix

    def before(self, other: Query, limit: int) -> Query:
        """This and another one behind it, which is cut where they have more than `limit` rows."""
        if not self.embeddings.rows:
            return other
        kept = min(other.embeddings.rows, max(0, limit - self.embeddings.rows))
        return Query(
            _joined(self.embeddings, _end(other.embeddings, kept)),
            _joined(self.hidden_states, _end(other.hidden_states, kept)),
        )


NOTHING = Query(FloatMatrix(), FloatMatrix())


def asks_for(batch: Iterable[Item], positions: int) -> int:
    """Positions at the end of a batch whose hidden states are wanted, for a query of so many."""
    return positions + _BEHIND if positions and any(item.asked for item in batch) else 0


def keep(batch: Sequence[Item], done: llm_pb2.PrefillDone) -> None:
    """Notes what was read and made of the user's words in a batch, as far as it came back."""
    first = done.position - done.hidden_states.rows
    row_bytes = _BYTES * done.hidden_states.columns
    for item, end in zip(batch, done.part_positions, strict=True):
        begin = max(end - item.size, first)
        if item.asked and begin < end:
            rows = slice((begin - first) * row_bytes, (end - first) * row_bytes)
            item.made = Made(done.embeddings.data[rows], done.hidden_states.data[rows], row_bytes)


def forget(content: Sequence[Item], positions: int) -> None:
    """Drops what was noted of all but the last so many positions of the user's latest words."""
    latest = _latest(content)
    for item in latest:
        if positions <= 0:
            item.made = None
        positions -= 0 if item.made is None else item.made.rows
    kept = {id(item) for item in latest}
    for item in content:
        if item.made is not None and id(item) not in kept:
            item.made = None


def query_of(content: Sequence[Item], positions: int) -> Query:
    """The user's latest words, the last so many positions of them."""
    known = [made for item in _latest(content) if (made := item.made) is not None]
    if not known:
        return NOTHING
    known.reverse()
    rows, columns = sum(made.rows for made in known), known[0].row_bytes // _BYTES
    embeddings, hidden_states = (
        FloatMatrix(data=b"".join(parts), rows=rows, columns=columns)
        for parts in zip(*((made.embeddings, made.hidden_states) for made in known), strict=True)
    )
    kept = min(rows, positions)
    return Query(_end(embeddings, kept), _end(hidden_states, kept))


def _latest(content: Sequence[Item]) -> list[Item]:
    """Items of the user's latest words, the last one first."""
    backwards = iter(reversed(content))
    last = next((item for item in backwards if item.asked), None)
    if last is None:
        return []
    return [last, *takewhile(lambda item: item.asked, backwards)]


def _end(matrix: FloatMatrix, rows: int) -> FloatMatrix:
    data = matrix.data[len(matrix.data) - _BYTES * rows * matrix.columns :]
    return FloatMatrix(data=data, rows=rows, columns=matrix.columns if rows else 0)


def _joined(first: FloatMatrix, second: FloatMatrix) -> FloatMatrix:
    rows = first.rows + second.rows
    return FloatMatrix(data=first.data + second.data, rows=rows, columns=first.columns)
