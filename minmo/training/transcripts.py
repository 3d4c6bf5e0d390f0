"""Transcripts and how many errors they have, to follow a run by; evaluation has finer rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from minmo.model.spelling import LETTERS
from minmo.training.errors import TrainingError

_OTHERS = re.compile(r"[^a-z0-9' ]+")


def plain_words(text: str) -> str:
    """Small letters and digits, one space between words."""
    return " ".join(_OTHERS.sub(" ", text.lower()).split())


def letters_text(log_probabilities: Tensor, lengths: Tensor) -> list[str]:
    """What letters spell, by greedy decoding.

    Args:
        log_probabilities: `[batch, frames, letters + 1]`, the last class is the blank.
        lengths: `[batch]`, frames of each clip.
    """
    texts = []
    best = log_probabilities.argmax(-1).tolist()
    for row, length in zip(best, lengths.tolist(), strict=True):
        heard = row[:length]
        changes = [now for before, now in zip([-1, *heard], heard, strict=False) if now != before]
        texts.append("".join(LETTERS[one] for one in changes if one < len(LETTERS)))
    return texts


def error_rate(wanted: Sequence[str], heard: Sequence[str], *, letters: bool = False) -> float:
    """Errors in each word, or letter, that was said; 0 where nothing was.

    Raises:
        TrainingError: `jiwer` is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise TrainingError("measuring needs jiwer: pip install 'minmo[train]'") from error
    pairs = [(said, text) for said, text in zip(wanted, heard, strict=True) if said]
    if not pairs:
        return 0.0
    said, texts = ([pair[side] for pair in pairs] for side in (0, 1))
    return float(jiwer.cer(said, texts) if letters else jiwer.wer(said, texts))
