"""Piper, an open voice to compare with: the one that training speech is made with.

It is no part of MinMo. Its phonemes come from a program of its own under the GPL-3.0
(`minmo.training.data.tools`), the network and its 904 speakers from a package (CC BY 4.0).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from minmo.cli.show import stderr
from minmo.engine.voice import InstructError
from minmo.evaluation.answering import Answer
from minmo.evaluation.speaking import Spoken
from minmo.evaluation.systems import Turn
from minmo.training.data.packages import folder_of
from minmo.training.data.tools import PHONEMES, Conversation, installed
from minmo.training.data.voice import VOICE, VOICE_HZ, Symbols, UnsayableError, Voice
from minmo.weights import shown_on

_SPEAKER = 0
_USUAL_RATE = 1.0


class PiperSpeaker:
    """One of its speakers.

    Args:
        phonemes: the running program that makes them.
        voice: at its own rate.
        symbols: its numbers of phonemes.
    """

    name = "Piper"
    made_with: Mapping[str, Any] = {
        "voice": VOICE.artifact.sha256,
        "phonemes": PHONEMES.requirements[0],
    }

    def __init__(self, phonemes: Conversation, voice: Voice, symbols: Symbols) -> None:
        self._phonemes, self._voice, self._symbols = phonemes, voice, symbols

    def say(self, text: str, instruct: str = "") -> Spoken:
        """Reads a text out; it follows no instructions."""
        if instruct:
            raise InstructError("Piper reads texts, and follows no instructions")
        began = time.perf_counter()
        (sentences,) = self._phonemes.ask({"texts": [text]})["phonemes"]
        try:
            ids = [self._symbols.ids(sentence) for sentence in sentences]
            samples = self._voice.say(ids, _SPEAKER, _USUAL_RATE, seed=0).samples
        except UnsayableError:
            samples = np.zeros(0, np.float32)
        return Spoken(samples, self._voice.rate_hz, time.perf_counter() - began)

    def answer(self, turn: Turn, answer: Answer) -> Spoken:
        """Reads the answer out."""
        return self.say(answer.text)


@contextmanager
def piper() -> Iterator[PiperSpeaker]:
    """Starts it; fetches what it needs where that is missing.

    Raises:
        DataError: its program cannot be installed.
        WeightsError: its voice cannot be fetched.
    """
    with shown_on(sys.stderr) as progress:
        folder = folder_of(VOICE, progress)
    python = installed(PHONEMES, lambda line: stderr().print(line, markup=False))
    with Conversation(PHONEMES, python) as phonemes:
        yield PiperSpeaker(phonemes, Voice(folder, VOICE_HZ), Symbols.of(folder))
