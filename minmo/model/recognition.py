"""What the decoders that recognise words share."""

from __future__ import annotations

from torch import Tensor


class RecognizerCache:
    """Keys and values of one utterance: what was said so far, and the encoder's frames.

    Attributes:
        length: tokens that the cache holds.
        said: `[layers, 2, 1, heads, max_tokens, head_dim]`, filled up to `length`.
        heard: for each layer keys and values of the frames, `[1, heads, frames, head_dim]`.
    """

    def __init__(self, said: Tensor, heard: list[tuple[Tensor, Tensor]]) -> None:
        self.length = 0
        self.said = said
        self.heard = heard


def repetition(tokens: list[int], *, longest: int = 12, times: int = 4) -> int:
    """Tokens to cut from the end, if the end is one phrase said over and over.

    A greedy decoder that has lost the audio repeats a phrase up to its limit. People repeat a
    word too ("no, no, no"), so a phrase counts from its fourth time on, and one of a single
    token from its eighth; one saying of it stays.

    Args:
        tokens: what was decoded so far.
        longest: longest phrase looked for, in tokens.
        times: how often a phrase of two or more tokens must stand at the end.
    """
    for size in range(1, longest + 1):
        count = times if size > 1 else 2 * times
        if len(tokens) >= size * count and tokens[-size * count :] == tokens[-size:] * count:
            return size * (count - 1)
    return 0
