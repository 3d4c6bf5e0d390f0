"""Spelling: what a piece of text is written with, for pieces that training has seldom heard.

A vocabulary has tens of thousands of pieces and speech has few hours: most are heard a few times,
many never. A vector of its own for each would start from nothing each time; made of the piece's
letters, it starts from all the other pieces that are spelled alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789'&%$/"
"""What speech is spelled with: the classes of a letter head, the last of which, after these, is
the blank. Case and punctuation are the business of pieces."""

LONGEST_SPELLING = 16
"""Characters of a piece that count; of longer ones the first and the last."""

_FIRST_CHARACTER, _CHARACTERS = 32, 96


def letters_of(text: str) -> list[int]:
    """The classes of a text's letters, as they are spoken: one space between words, none around."""
    kept = (character if character in LETTERS else " " for character in text.lower())
    return [LETTERS.index(character) for character in " ".join("".join(kept).split())]


def spellings_of(pieces: Sequence[str]) -> Tensor:
    """`[pieces, LONGEST_SPELLING]`, uint8: ASCII characters from 1 on, zeros behind.

    A space in front stands for the start of a word, as in the tokeniser's decoded pieces.

    Raises:
        ValueError: a piece is empty or has a character that is not printable ASCII.
    """
    rows = torch.zeros(len(pieces), LONGEST_SPELLING, dtype=torch.uint8)
    for row, piece in zip(rows, pieces, strict=True):
        if not piece or not (piece.isascii() and piece.isprintable()):
            raise ValueError(f"piece {piece!r} is not printable ASCII: leave it out")
        half = LONGEST_SPELLING // 2
        shown = piece if len(piece) <= LONGEST_SPELLING else piece[:half] + piece[-half:]
        codes = [ord(character) - _FIRST_CHARACTER + 1 for character in shown]
        row[: len(codes)] = torch.tensor(codes, dtype=torch.uint8)
    return rows


class SpellingEncoder(nn.Module):
    """A vector for each piece, from its letters: two convolutions over them, then their mean.

    Args:
        width: inner channels.
        output_width: channels of a piece's vector.
    """

    def __init__(self, width: int, output_width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(_CHARACTERS, width)
        # Where a letter stands matters from both ends: a piece starts, and a piece ends, a word.
        self.from_start = nn.Embedding(LONGEST_SPELLING, width)
        self.from_end = nn.Embedding(LONGEST_SPELLING, width)
        self.conv1 = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.out_proj = nn.Linear(width, output_width)

    def forward(self, spellings: Tensor) -> Tensor:
        """`[pieces, LONGEST_SPELLING]` as `spellings_of` gives to `[pieces, output_width]`."""
        codes = spellings.long()
        lengths = (codes > 0).sum(1, keepdim=True)
        # Pieces are short: what no piece of these reaches need not be computed.
        longest = LONGEST_SPELLING
        if len(codes) and not codes.is_meta:
            longest = max(1, int(lengths.max()))
        codes = codes[:, :longest]
        there = (codes > 0)[:, :, None]
        numbers = torch.arange(longest, device=codes.device)
        ends = (lengths - 1 - numbers).clamp(min=0)
        hidden = self.characters(codes) + self.from_start(numbers) + self.from_end(ends)
        for conv in (self.conv1, self.conv2):
            # Zeros behind the end, or a piece would depend on the longest one beside it.
            seen = hidden.masked_fill(~there, 0).transpose(1, 2)
            hidden = hidden + F.gelu(conv(seen)).transpose(1, 2)
        mean = hidden.masked_fill(~there, 0).sum(1) / lengths.clamp(min=1)
        vectors: Tensor = self.out_proj(mean)
        return vectors
