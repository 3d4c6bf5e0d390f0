"""What the tests of listening share: recordings, word error rate, weights."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import jiwer
import pytest

from minmo.audio.pcm import Samples, read_file
from minmo.audio.resample import resample
from minmo.weights.errors import WeightsError
from minmo.weights.load import weights_folder

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Recording:
    """Real speech at 16 kHz, and what is said in it."""

    name: str
    text: str
    samples: Samples


def recordings() -> list[Recording]:
    """All recordings of `tests/data`."""
    with (DATA / "transcripts.csv").open() as file:
        return [recording(row["file"], row["text"]) for row in csv.DictReader(file)]


def recording(name: str, text: str) -> Recording:
    samples, rate = read_file(DATA / name)
    return Recording(name, text, resample(samples, rate, 16_000))


def words(text: str) -> str:
    """Words alone: lower case, no punctuation."""
    return " ".join(re.sub(r"[^a-z' ]+", " ", text.lower().replace("-", " ")).split())


def word_error_rate(expected: list[str], found: list[str]) -> float:
    """Share of words that are wrong, after `words`."""
    return float(jiwer.wer([words(text) for text in expected], [words(text) for text in found]))


def weights_or_skip(module: str) -> Path:
    """The folder of `mini`'s weights of a module; skips the test where they are not prepared."""
    try:
        return weights_folder("mini", module)
    except WeightsError as error:
        pytest.skip(str(error))
