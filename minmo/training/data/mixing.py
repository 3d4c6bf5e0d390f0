"""Which text is said by whom, in which set and in which order: all of it by seed.

What happens to a text depends on the seed and on the text alone wherever it can: when a source
grows, or another joins, no text moves from one set to another.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count

from minmo.training.data.errors import DataError
from minmo.training.data.lines import Kind, Line, Split
from minmo.training.data.sources import Text

SPEAKERS = 904
_TEST_SPEAKERS, _VALID_SPEAKERS = 40, 16
# Of the texts of a kind: those of books are many, and questions are what is asked of MinMo.
_TEST_SHARES: Mapping[Kind, float] = {"question": 0.02, "turn": 0.02, "sentence": 0.005}
_VALID_PER_TEST = 0.2
_RATES = (0.8, 1.3)
# Of the utterances: an assistant is asked; what is not a question teaches it other words.
_KIND_SHARES: Mapping[Kind, float] = {"question": 0.5, "turn": 0.2, "sentence": 0.3}
# Measured on 2,000 utterances of all kinds: seconds of a character at rate 1.
_SECONDS_A_CHARACTER = 0.0529


def split_of(text: Text, seed: int) -> Split:
    """The set of a text."""
    drawn = _drawn(f"{seed} split {text.key}") / _TEST_SHARES[text.kind]
    if drawn < 1:
        return "test"
    return "valid" if drawn < 1 + _VALID_PER_TEST else "train"


@lru_cache(maxsize=8)
def speakers_of(split: Split, seed: int) -> tuple[int, ...]:
    """The voices of a set; no other set has any of them."""
    voices = list(range(SPEAKERS))
    random.Random(f"{seed} speakers").shuffle(voices)
    bounds = {"test": (0, _TEST_SPEAKERS)}
    bounds["valid"] = (_TEST_SPEAKERS, _TEST_SPEAKERS + _VALID_SPEAKERS)
    bounds["train"] = (_TEST_SPEAKERS + _VALID_SPEAKERS, SPEAKERS)
    first, end = bounds[split]
    return tuple(voices[first:end])


def seconds_of(line: Line) -> float:
    """About how long an utterance will last."""
    return len(line.text) * line.rate * _SECONDS_A_CHARACTER


def lines_of(
    texts: Sequence[Text],
    seed: int,
    hours: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Line]:
    """Texts, none of them twice, to utterances: test and valid, then train.

    Any first part of train has its sources in the same shares, by their weights: a source that has
    run out begins again, with other voices, where `hours` asks for more than there is.

    Args:
        texts: what can be said.
        seed: of everything that is drawn.
        hours: of train, about. None: each text once.
        weights: shares of sources instead of the usual ones.

    Raises:
        DataError: there is no text for train, or a weight cannot be used.
    """
    by_split: dict[Split, list[Text]] = {"test": [], "valid": [], "train": []}
    for text in texts:
        by_split[split_of(text, seed)].append(text)
    if not by_split["train"]:
        raise DataError("there are no texts to train on: give files, or --books")
    lines = []
    for split in ("test", "valid"):
        ordered = sorted(by_split[split], key=lambda text: _drawn(f"{seed} order {text.key}"))
        lines += [_line(text, split, number, 0, seed) for number, text in enumerate(ordered)]
    lines += _train(_by_source(by_split["train"]), seed, hours, weights or {})
    return lines


def _train(
    sources: dict[str, list[Text]], seed: int, hours: float | None, weights: Mapping[str, float]
) -> Iterator[Line]:
    shares = _shares(sources, weights)
    queues = {name: _endless(texts, f"{seed} {name}") for name, texts in sources.items()}
    left = {name: len(texts) for name, texts in sources.items()}
    chooser = random.Random(f"{seed} mix")
    seconds = 0.0
    for number in count():
        names = [name for name in queues if hours is not None or left[name]]
        if not names or (hours is not None and seconds >= hours * 3600):
            return
        name = chooser.choices(names, [shares[name] for name in names])[0]
        left[name] -= 1
        text, round_ = next(queues[name])
        line = _line(text, "train", number, round_, seed)
        seconds += seconds_of(line)
        yield line


def _shares(sources: dict[str, list[Text]], weights: Mapping[str, float]) -> dict[str, float]:
    """Of each source. Within a kind a source counts by the square root of its texts."""
    if unknown := sorted(set(weights) - set(sources)):
        raise DataError(f"there is no source {unknown[0]!r}; there are {', '.join(sources)}")
    of_kind: dict[Kind, float] = {}
    for texts in sources.values():
        kind = texts[0].kind
        of_kind[kind] = of_kind.get(kind, 0) + len(texts) ** 0.5
    shares = {}
    for name, texts in sources.items():
        kind = texts[0].kind
        usual = _KIND_SHARES[kind] * len(texts) ** 0.5 / of_kind[kind]
        shares[name] = weights.get(name, usual)
        if not 0 < shares[name] < float("inf"):
            raise DataError(f"the weight of {name} is {shares[name]}: it must be above 0")
    return shares


def _endless(texts: list[Text], seed: str) -> Iterator[tuple[Text, int]]:
    """Texts in a drawn order, over and over, each time in another; with the number of times."""
    for round_ in count():
        ordered = sorted(texts, key=lambda text: _drawn(f"{seed} {round_} {text.key}"))
        yield from ((text, round_) for text in ordered)


def _line(text: Text, split: Split, number: int, round_: int, seed: int) -> Line:
    voices = speakers_of(split, seed)
    drawn = random.Random(f"{seed} voice {round_} {text.key}")
    # Where there are few speakers, each says as much as the others.
    voice = drawn.choice(voices) if split == "train" else voices[number % len(voices)]
    rate = round(drawn.uniform(*_RATES), 3)
    return Line(
        id=f"{split}-{number:06d}",
        text=text.text,
        kind=text.kind,
        source=text.source,
        split=split,
        voice=voice,
        rate=rate,
        answers=text.answers,
        speaker=text.speaker,
    )


def _by_source(texts: Iterable[Text]) -> dict[str, list[Text]]:
    sources: dict[str, list[Text]] = {}
    for text in texts:
        sources.setdefault(text.source, []).append(text)
    return sources


def _drawn(what: str) -> float:
    """A number from 0 to 1 that is the same for the same words, on every machine."""
    return int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") / 2**64
