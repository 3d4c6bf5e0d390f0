"""Token ids for text that comes without: a voice that reads ids can then read any text aloud."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace

from minmo.engine.prompt import ChatFormat, TextStream
from minmo.engine.voice import Mark, Piece, TextToken


class Spelling:
    """The text of one utterance.

    A text such as a typed one has no ids, which a message cannot tell from the id 0: text that
    comes with that becomes tokens of its own, among them 0 if it was meant. Marks are counted back.

    Args:
        chat: the tokenizer of the LLM.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self._chat = chat
        # Tokens that the voice reads, up to the end of each that the caller has sent.
        self._ends: list[int] = []

    def spell(self, tokens: Sequence[TextToken]) -> list[TextToken]:
        """Tokens as the voice reads them."""
        spelled: list[TextToken] = []
        before = self._ends[-1] if self._ends else 0
        for token in tokens:
            if token.id == 0 and token.text:
                spelled.extend(self._tokens(token.text))
            else:
                spelled.append(token)
            self._ends.append(before + len(spelled))
        return spelled

    def counted(self, piece: Piece) -> Piece:
        """A piece whose marks count the caller's tokens."""
        marks: list[Mark] = []
        for mark in piece.marks:
            count = bisect_right(self._ends, mark.token_count)
            if count:
                marks.append(Mark(count, mark.sample))
        return replace(piece, marks=tuple(marks))

    def _tokens(self, text: str) -> Iterator[TextToken]:
        written = TextStream(self._chat)
        for token in self._chat.text(text):
            yield TextToken(token, written.add(token))
