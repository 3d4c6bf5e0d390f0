"""The voice ``pico``: SVOX Pico, which reads whole phrases of English text at 16 kHz.

It has no clock for words: within a phrase, marks are estimates from the letters of its words. They
are exact at the end of each phrase and never beyond it; text that is cut by a mark within it may be
off by a word or two.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minmo.engine.phrases import Ending, Phrase, PhraseGatherer
from minmo.engine.pico_process import (
    SAMPLE_RATE_HZ,
    Manner,
    PicoError,
    PicoProcesses,
    PicoStuckError,
)
from minmo.engine.speakable import shown, speakable
from minmo.engine.voice import HiddenStates, InstructError, Mark, Piece, Query, Samples, TextToken

NAME = "pico"

# Pico's search for the sounds of a word grows with its length until it never ends.
_LONGEST_WORD = 40
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD}}}(?=\S)")

# About -46 dBFS: Pico's silence is its noise, below that.
_SILENCE = 0.005
_LEAD_MS = 10
# Pico itself leaves 110 to 140 ms after a phrase, 460 to 530 ms after a sentence.
_PAUSE_MS = {Ending.SENTENCE: 320, Ending.CLAUSE: 130, Ending.WORD: 30}

_WORD = re.compile(r"\S+")
_DIGIT_WEIGHT = 4.0
_CAPITAL_WEIGHT = 2.5
_PAUSE_WEIGHT = 4.0

_MANNERS: dict[str, tuple[str, int]] = {
    **dict.fromkeys(("slow", "slowly", "slower"), ("rate", 75)),
    **dict.fromkeys(("fast", "faster", "quickly"), ("rate", 135)),
    **dict.fromkeys(("loud", "louder", "loudly"), ("volume", 110)),
    **dict.fromkeys(("quiet", "quieter", "quietly", "softly"), ("volume", 35)),
    **dict.fromkeys(("high", "higher"), ("pitch", 125)),
    **dict.fromkeys(("deep", "deeper", "low", "lower"), ("pitch", 80)),
}
_IGNORED_WORDS = frozenset(
    ("and", "please", "speak", "say", "it", "talk", "in", "a", "voice", "with", "more", "very")
)


class PicoVoice:
    """SVOX Pico in processes of its own.

    Args:
        processes: phrases that are spoken at the same time.
    """

    name = NAME
    sample_rate_hz = SAMPLE_RATE_HZ
    reads_hidden_states = False
    hidden_width = 0
    max_query_positions = 0

    def __init__(self, processes: int = 1) -> None:
        self._warm_texts = processes
        self._processes = PicoProcesses(processes)

    def warm_up(self) -> None:
        """Says something with every process."""
        threads = [
            threading.Thread(target=self._processes.speak, args=("hello", Manner()))
            for _ in range(self._warm_texts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def open(self, instruct: str, query: Query | None) -> PicoUtterance:
        """Starts an utterance; see `minmo.engine.voice.Voice.open`."""
        return PicoUtterance(self._processes, manner_of(instruct))

    def close(self) -> None:
        """Ends the processes."""
        self._processes.close()


class PicoUtterance:
    """One answer; a step is a phrase."""

    def __init__(self, processes: PicoProcesses, manner: Manner) -> None:
        self._processes = processes
        self._manner = manner
        self._lock = threading.Lock()
        self._gatherer = PhraseGatherer()
        self._tokens = 0
        self._marked_tokens = 0
        self._samples = 0
        self._spoke = False
        self._text = ""
        self._unsayable = ""
        self._failed: list[str] = []

    @property
    def unspoken_reason(self) -> str:
        """Why (part of) the text has no sound so far; empty if all of it has."""
        if not self._spoke and not self._failed:
            if not self._text.strip():
                return ""
            return f"has no word that voice '{NAME}' can say: {shown(self._text)!r}"
        parts = [f"{shown(text)!r}" for text in (self._unsayable, *self._failed) if text]
        return f"voice '{NAME}' cannot say: {', '.join(parts)}" if parts else ""

    def push(self, tokens: Sequence[TextToken], hidden_states: HiddenStates | None) -> None:
        """Takes the next tokens; hidden states are not read."""
        with self._lock:
            for token in tokens:
                self._gatherer.push(token.text)

    def end(self) -> None:
        """No more tokens follow."""
        with self._lock:
            self._gatherer.end()

    def step(self) -> Piece | None:
        """Says the next phrase; None if it takes more tokens to know it, or all is said."""
        while True:
            with self._lock:
                phrase = self._gatherer.next()
            if phrase is None:
                return self._rest()
            first_token = self._tokens
            self._tokens += len(phrase.token_ends)
            if not self._spoke:
                self._text += phrase.text
            spoken = self._say(phrase)
            if spoken is None:
                continue
            self._spoke = True
            marks = self._marks(phrase, spoken, first_token)
            self._samples += len(spoken.samples)
            return Piece(spoken.samples, marks)

    def close(self) -> None:
        """Does nothing: a phrase that is being said is soon said."""

    def _rest(self) -> Piece | None:
        """A mark without audio for the tokens after the last phrase that was said."""
        if self._marked_tokens == self._tokens or not self._gatherer.finished:
            return None
        self._marked_tokens = self._tokens
        return Piece(np.empty(0, np.float32), (Mark(self._tokens, self._samples),))

    def _say(self, phrase: Phrase) -> _SpokenPhrase | None:
        spoken = speakable(phrase.text)
        self._unsayable = (self._unsayable + spoken.unsayable)[:_LONGEST_WORD]
        if not spoken.text:
            return None
        samples = self._render(_LONG_WORD.sub(r"\g<0> ", spoken.text).split(" "))
        return _trimmed(samples, phrase.ending)

    def _render(self, words: list[str]) -> Samples:
        """Says words together; in halves where Pico fails, without those that it cannot say."""
        text = " ".join(words)
        try:
            return self._processes.speak(text, self._manner)
        except PicoStuckError:
            self._failed.append(text)
        except PicoError:
            half = len(words) // 2
            if half:
                return np.concatenate([self._render(words[:half]), self._render(words[half:])])
            self._failed.append(text)
        return np.empty(0, np.float32)

    def _marks(self, phrase: Phrase, spoken: _SpokenPhrase, first_token: int) -> tuple[Mark, ...]:
        """One mark a word, by its share of the letters, and one at the end of the phrase."""
        words = list(_WORD.finditer(phrase.text))
        weights = np.cumsum([_weight(speakable(word.group()).text) for word in words])
        whole = max(float(weights[-1]), 1.0)
        length = spoken.speech_end - spoken.speech_start
        marks: list[Mark] = []
        for word, weight in zip(words[:-1], weights[:-1], strict=True):
            tokens = first_token + sum(end <= word.end() for end in phrase.token_ends)
            if tokens > self._marked_tokens:
                sample = spoken.speech_start + int(length * weight / whole)
                marks.append(Mark(tokens, self._samples + sample))
                self._marked_tokens = tokens
        if self._tokens > self._marked_tokens:
            marks.append(Mark(self._tokens, self._samples + len(spoken.samples)))
            self._marked_tokens = self._tokens
        return tuple(marks)


@dataclass(frozen=True)
class _SpokenPhrase:
    """Audio of a phrase, `[samples]`, and where in it the words begin and end."""

    samples: Samples
    speech_start: int
    speech_end: int


def manner_of(instruct: str) -> Manner:
    """What an instruction means for Pico.

    Raises:
        InstructError: it says something else than how fast, loud or high.
    """
    values: dict[str, int] = {}
    for word in re.split(r"[\s,.;!]+", instruct.lower().strip(" ,.;!")):
        if not word or word in _IGNORED_WORDS:
            continue
        if word not in _MANNERS:
            known = ", ".join(_MANNERS)
            raise InstructError(
                f"voice '{NAME}' does not know {shown(word)!r}; it knows only: {known}"
            )
        name, value = _MANNERS[word]
        if values.setdefault(name, value) != value:
            raise InstructError(f"{shown(instruct)!r} contradicts itself in {name}; give one")
    return Manner(**values)


def _trimmed(samples: Samples, ending: Ending) -> _SpokenPhrase | None:
    """Cuts the silence before a phrase, and after it to a pause that suits its ending."""
    loud = np.flatnonzero(np.abs(samples) > _SILENCE)
    if not len(loud):
        return None
    start = max(0, int(loud[0]) - _samples(_LEAD_MS))
    speech_end = int(loud[-1]) + 1
    end = min(len(samples), speech_end + _samples(_PAUSE_MS[ending]))
    return _SpokenPhrase(samples[start:end], int(loud[0]) - start, speech_end - start)


def _samples(milliseconds: int) -> int:
    return milliseconds * SAMPLE_RATE_HZ // 1000


def _weight(spoken: str) -> float:
    """How long a word is likely to take, in letters; 0 for one that is not said."""
    if not spoken:
        return 0.0
    digits = sum(character.isdigit() for character in spoken)
    capitals = sum(character.isupper() for character in spoken[1:])
    letters = sum(character.isalpha() for character in spoken) - capitals
    pause = _PAUSE_WEIGHT if spoken[-1] in ",;:.!?" else 0.0
    return 1.0 + letters + _DIGIT_WEIGHT * digits + _CAPITAL_WEIGHT * capitals + pause
