"""When which text is heard, as far as that can be known.

The voice token LM says nothing about which speech token belongs to which word, and it reads text
ahead of what it speaks. So marks are estimates: text is taken to be spoken at a steady rate of
characters. A token is never heard before the LM has read it; the last one that was read counts as
heard only at the end; and once the end is known, what is left of the text is spread over what is
left of the audio, so that errors of the rate don't add up beyond it. The last mark is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from minmo.engine.voice import Mark
from minmo.model.speaker import USUAL_CHARACTERS_PER_SECOND


class MarkEstimator:
    """The marks of one utterance.

    Args:
        sample_rate_hz: of its audio.
        characters_per_second: how fast the voice speaks.
    """

    def __init__(
        self, sample_rate_hz: int, characters_per_second: float = USUAL_CHARACTERS_PER_SECOND
    ) -> None:
        self._samples_per_character = sample_rate_hz / characters_per_second
        # Of every token that was read: characters up to its end, samples made before it was read.
        self._characters: list[int] = []
        self._earliest: list[int] = []
        self._marked = 0
        self._sample = 0

    def read(self, texts: Sequence[str], sample: int) -> None:
        """The LM has read further tokens, after it had spoken `sample` samples."""
        for text in texts:
            self._characters.append((self._characters or [0])[-1] + len(text))
            self._earliest.append(sample)

    def reached(self, sample: int) -> tuple[Mark, ...]:
        """Marks up to `sample`; the utterance goes on after it."""
        marks: list[Mark] = []
        while self._marked < len(self._characters) - 1:
            at = int(self._characters[self._marked] * self._samples_per_character)
            at = max(at, self._earliest[self._marked], self._sample)
            if at > sample:
                break
            self._mark(at, marks)
        return tuple(marks)

    def reached_of(self, sample: int, whole: int) -> tuple[Mark, ...]:
        """Marks up to `sample` of an utterance that is now known to end at sample `whole`."""
        marks: list[Mark] = []
        before = self._characters[self._marked - 1] if self._marked else 0
        left = max(1, (self._characters or [0])[-1] - before)
        start = self._sample
        while self._marked < len(self._characters) - 1:
            share = (self._characters[self._marked] - before) / left
            at = start + int((whole - start) * share)
            if at > sample:
                break
            self._mark(at, marks)
        return tuple(marks)

    def _mark(self, sample: int, marks: list[Mark]) -> None:
        self._marked += 1
        self._sample = sample
        if marks and marks[-1].sample == sample:
            marks.pop()
        marks.append(Mark(self._marked, sample))
