"""What is said in a recording that nobody has transcribed: where two recognisers agree.

Moonshine and Whisper were trained on other data and err in other places, so what both hear is
almost always right. Moonshine's text is kept: it has case and punctuation.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from tokenizers import Tokenizer

from minmo.audio.pcm import Samples, to_s16
from minmo.engine.listening import Recogniser
from minmo.engine.reading import read_with_moonshine
from minmo.engine.spoken_form import spoken_form
from minmo.model.moonshine_encoder import MoonshineEncoder
from minmo.model.moonshine_recognizer import MoonshineRecognizer
from minmo.training.data.tools import Conversation
from minmo.weights.load import weights_folder
from minmo.weights.modules import load_module

MOST_APART = 0.1
"""Words that may differ, as a share of the words of the longer text."""

MOST_WRONG = 0.34
"""Words that the better recogniser may hear otherwise than a text says: it is no text of it then.
Names and numbers are heard otherwise too."""

LABELS = "moonshine-tiny, whisper-tiny.en agrees"
_PRESET = "mini"


class Agreement:
    """Transcribes what two recognisers hear alike.

    Args:
        moonshine: the one whose text is kept.
        whisper: the running other one.

    Attributes:
        about: what is told of texts that come from it.
    """

    about = LABELS

    def __init__(self, moonshine: Recogniser, whisper: Conversation) -> None:
        self._moonshine, self._whisper = moonshine, whisper

    def __call__(self, samples: Samples) -> str | None:
        """What is said in `[samples]` at 16 kHz; None where they disagree or nothing is said."""
        text = self._moonshine.transcribe(samples)
        if not text:
            return None
        return text if apart(text, self._whispered(samples)) <= MOST_APART else None

    def hears(self, samples: Samples, text: str) -> bool:
        """Whether a text may be what is said in `[samples]` at 16 kHz: one of them hears it."""
        said = spoken_form(text).text
        return any(
            apart(said, spoken_form(hear(samples)).text) <= MOST_WRONG
            for hear in (self._moonshine.transcribe, self._whispered)
        )

    def _whispered(self, samples: Samples) -> str:
        pcm = base64.b64encode(to_s16(samples).tobytes()).decode()
        return str(self._whisper.ask({"pcm": pcm})["text"])


def moonshine() -> Recogniser:
    """The recogniser of `mini`, on the CPU.

    Raises:
        WeightsError: its weights are not here.
    """
    encoder = cast("MoonshineEncoder", load_module(_PRESET, "voice_encoder"))
    decoder = cast("MoonshineRecognizer", load_module(_PRESET, "recognizer"))
    decoder.lay_out_for_steps()
    folder: Path = weights_folder(_PRESET, "recognizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    torch.set_num_threads(1)
    return Recogniser(
        read_with_moonshine(encoder, decoder),
        lambda tokens: str(tokenizer.decode(list(tokens))),
        encoder.shortest_clip,
    )


def apart(one: str, other: str) -> float:
    """Words to insert, delete or replace between two texts, as a share of the longer one's."""
    first, second = _words(one), _words(other)
    return _distance(first, second) / max(len(first), len(second), 1)


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", text.lower()).replace("'", "").replace("\u2019", "")
    return re.findall(r"[a-z0-9]+", plain)


def _distance(first: Sequence[str], second: Sequence[str]) -> int:
    row = list(range(len(second) + 1))
    for number, word in enumerate(first, 1):
        above, row[0] = row[0], number
        for column, other in enumerate(second, 1):
            replaced = above + (word != other)
            above = row[column]
            row[column] = min(replaced, above + 1, row[column - 1] + 1)
    return row[-1]
