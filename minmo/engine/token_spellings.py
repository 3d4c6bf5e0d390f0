"""How each token of an LLM is spelled, for a voice that reads letters."""

from __future__ import annotations

import torch
from torch import Tensor

from minmo.engine.prompt import ChatFormat
from minmo.model.spelling import LONGEST_SPELLING, spellings_of


def token_spellings(chat: ChatFormat, vocabulary: int) -> Tensor:
    """Spellings of all tokens, for `minmo.model.output_projector.OutputProjector.spell`.

    Args:
        chat: the tokenizer.
        vocabulary: rows of the LLM's embedding table, which may be more than there are tokens.

    Returns:
        `[vocabulary, LONGEST_SPELLING]`, uint8, as `spellings_of`; zeros for special tokens and for
        those that are not printable ASCII alone, such as a part of a character.
    """
    texts = {}
    for token in range(vocabulary):
        text = chat.token_bytes(token).decode("ascii", "replace")
        if text and text.isascii() and text.isprintable():
            texts[token] = text
    spellings = torch.zeros(vocabulary, LONGEST_SPELLING, dtype=torch.uint8)
    spellings[list(texts)] = spellings_of(list(texts.values()))
    return spellings
