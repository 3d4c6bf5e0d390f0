"""Where each word of a clip is heard, for clips whose voice says so.

Connectionist temporal classification finds out by itself when what is said, and needs long for it:
for thousands of clips all that it learns is to say nothing. A synthetic voice knows how long each
of its sounds is, so its clips can be cut into words, each of which is learned from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Spans: TypeAlias = Sequence[tuple[float, float]]
"""Start and end of each word, in seconds."""


def spoken_words(text: str) -> list[str]:
    """The words of a text, with the punctuation that is written to them: those that sound."""
    return [word for word in text.split() if any(character.isalnum() for character in word)]


def moved(spans: Spans, speed: float, delay: float) -> list[tuple[float, float]]:
    """Spans of a clip that is played faster by `speed`, behind `delay` seconds of silence."""
    return [(start / speed + delay, end / speed + delay) for start, end in spans]
