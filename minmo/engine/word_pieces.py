"""From the recogniser's tokens to what the LLM reads: embeddings of pieces of its own vocabulary.

The recogniser and the LLM cut words differently. A word that was heard is cut as the LLM's
tokenizer would cut it, and what the LLM reads for a piece is not the piece's row of its embedding
table but a mixture of rows: of all that it may have been, by how likely each is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from minmo.engine.streaming_recogniser import Token

_WORD_MARK = "\u2581"
_KNOWN_STRINGS = 65_536


class Pieces(NamedTuple):
    """The pieces of a word.

    Attributes:
        tokens: their ids in the LLM's vocabulary.
        frames: for each, the encoder's frame at which it is heard.
        mixtures: `[pieces, width]`, float32.
    """

    tokens: list[int]
    frames: list[int]
    mixtures: Tensor


class WordPieces:
    """Makes pieces of words.

    Args:
        heard_by: the recogniser's tokenizer.
        read_by: the LLM's tokenizer.
        table: `[vocabulary, width]`, the LLM's embedding table.
    """

    def __init__(self, heard_by: Tokenizer, read_by: Tokenizer, table: Tensor) -> None:
        self._heard_by, self._read_by, self._table = heard_by, read_by, table
        strings = [heard_by.id_to_token(token) or "" for token in range(heard_by.get_vocab_size())]
        self.begins_word = torch.tensor([one.startswith(_WORD_MARK) for one in strings])
        """`[vocabulary]`, bool: the recogniser's tokens that begin a word."""
        special = {t for t, added in heard_by.get_added_tokens_decoder().items() if added.special}
        self._strings = [
            "" if token in special else one.replace(_WORD_MARK, " ")
            for token, one in enumerate(strings)
        ]
        self._first_piece = lru_cache(_KNOWN_STRINGS)(self._made_first_piece)

    @property
    def width(self) -> int:
        """Channels of a mixture."""
        return self._table.shape[1]

    def pieces(self, word: Sequence[Token], *, is_first: bool) -> Pieces:
        """The pieces of a word.

        Args:
            word: its tokens, with the punctuation behind it.
            is_first: whether no other stands before it, so that no space does.
        """
        ids = [token.id for token in word]
        space = "" if is_first else " "
        text = space + str(self._heard_by.decode(ids)).strip()
        # Where each token begins in the text; the space belongs to the first one.
        starts = [0] + [
            len(space) + len(str(self._heard_by.decode(ids[:count])).strip())
            for count in range(1, len(ids))
        ]
        cut = self._read_by.encode(text, add_special_tokens=False)
        frames: list[int] = []
        mixtures: list[Tensor] = []
        before = -1
        for piece, (begin, _) in zip(cut.ids, cut.offsets, strict=True):
            number = bisect_right(starts, begin) - 1
            token = word[number]
            frames.append(token.frame)
            # What else a token may have been says nothing of the later pieces that it is cut into.
            if number == before:
                mixtures.append(self._rows([piece])[0])
            else:
                mixtures.append(self._mixture(piece, token, spaced=not (is_first and number == 0)))
            before = number
        rows = torch.stack(mixtures) if mixtures else torch.zeros(0, self.width)
        return Pieces(list(cut.ids), frames, rows)

    def _mixture(self, piece: int, token: Token, *, spaced: bool) -> Tensor:
        pieces, weights = [piece], [float(token.weights[0])]
        for other, weight in zip(token.candidates[1:].tolist(), token.weights[1:], strict=True):
            string = self._strings[other]
            first = self._first_piece(string if spaced else string.lstrip(" "))
            if first is not None:
                pieces.append(first)
                weights.append(float(weight))
        shares = torch.tensor(weights)
        return (shares / shares.sum()) @ self._rows(pieces)

    def _rows(self, pieces: Sequence[int]) -> Tensor:
        return self._table[torch.tensor(pieces, device=self._table.device)].float().cpu()

    def _made_first_piece(self, string: str) -> int | None:
        """The first piece that the LLM cuts a token's string into; None for one without any."""
        ids = self._read_by.encode(string, add_special_tokens=False).ids
        return int(ids[0]) if ids else None
