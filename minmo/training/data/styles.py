"""How something is to be said, and the sentences in which people ask for it.

Each style has many wordings. Those of valid and test are asked in sentences that train has never
seen, and some name the style by words of their own, so that what is measured there is not whether a
sentence was learned by heart.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from minmo.training.data.lines import Instructed, Line, Split, Style


@dataclass(frozen=True)
class _Manner:
    """A style and words for it; train does not hear the others."""

    style: Style
    words: tuple[str, ...]
    others: tuple[str, ...]


_MANNERS: Mapping[str, _Manner] = {
    "slower": _Manner(
        Style(rate=0.85),
        ("a little slower", "a bit more slowly", "slightly slower", "a bit slower"),
        ("somewhat more slowly", "a touch slower"),
    ),
    "slow": _Manner(
        Style(rate=0.7),
        ("slowly", "more slowly", "slower", "at a slow pace", "nice and slow"),
        ("in a slow way", "at a leisurely pace"),
    ),
    "very-slow": _Manner(
        Style(rate=0.55),
        ("very slowly", "extremely slowly", "much slower", "as slowly as you can"),
        ("really slowly", "at a very slow pace"),
    ),
    "faster": _Manner(
        Style(rate=1.2),
        ("a little faster", "a bit more quickly", "slightly faster", "a bit quicker"),
        ("somewhat faster", "a touch quicker"),
    ),
    "fast": _Manner(
        Style(rate=1.4),
        ("fast", "quickly", "faster", "more quickly", "at a fast pace"),
        ("in a hurry", "at a quick pace"),
    ),
    "very-fast": _Manner(
        Style(rate=1.7),
        ("very fast", "very quickly", "much faster", "as fast as you can"),
        ("really fast", "at top speed"),
    ),
    "higher": _Manner(
        Style(pitch=2),
        ("a little higher", "in a slightly higher voice", "with a higher pitch"),
        ("in a somewhat higher voice",),
    ),
    "high": _Manner(
        Style(pitch=4),
        ("in a high voice", "in a much higher voice", "with a high pitch"),
        ("in a high-pitched voice",),
    ),
    "lower": _Manner(
        Style(pitch=-2),
        ("a little lower", "in a slightly deeper voice", "with a lower pitch"),
        ("in a somewhat lower voice",),
    ),
    "low": _Manner(
        Style(pitch=-4),
        ("in a low voice", "in a deep voice", "with a low pitch", "in a much deeper voice"),
        ("in a low-pitched voice",),
    ),
    "louder": _Manner(
        Style(loudness=4),
        ("a little louder", "a bit louder", "slightly louder", "louder"),
        ("somewhat louder",),
    ),
    "loud": _Manner(
        Style(loudness=8),
        ("loudly", "very loudly", "in a loud voice", "much louder", "as loud as you can"),
        ("at full volume",),
    ),
    "softer": _Manner(
        Style(loudness=-5),
        ("a little softer", "a bit more quietly", "slightly quieter", "more softly"),
        ("somewhat more quietly",),
    ),
    "soft": _Manner(
        Style(loudness=-10),
        ("softly", "quietly", "very quietly", "in a soft voice", "in a quiet voice"),
        ("under your breath",),
    ),
}
_SENTENCES: Mapping[Split, tuple[str, ...]] = {
    "train": (
        "Say it {}.",
        "Say this {}.",
        "Please say it {}.",
        "Read it {}.",
        "Please read this {}.",
        "Read it out {}, please.",
        "Speak {}.",
        "Please speak {}.",
        "Can you say it {}?",
        "Could you say that {}, please?",
        "I want you to speak {}.",
        "I need you to say this {}.",
        "Now {}, please.",
        "{}.",
    ),
    "valid": ("Would you say it {}?", "Try to speak {}.", "Let me hear it {}."),
    "test": ("Tell me this {}.", "I would like to hear it {}.", "How about saying it {}?"),
}

STYLES: Mapping[str, Style] = {name: manner.style for name, manner in _MANNERS.items()}
"""Every style that is asked for, by name."""


def wordings(name: str, split: Split) -> list[str]:
    """Sentences that ask for a style, those of a set; no other set has any of them."""
    manner = _MANNERS[name]
    words = manner.words if split == "train" else (*manner.words, *manner.others)
    asked = (sentence.format(word) for sentence in _SENTENCES[split] for word in words)
    return [one[:1].upper() + one[1:] for one in asked]


def drawn_styles(times: float, drawn: random.Random) -> list[str]:
    """Names of different styles, as many as `times` says; its fraction is a chance of one more."""
    count = int(times) + (drawn.random() < times % 1)
    return drawn.sample(sorted(_MANNERS), min(count, len(_MANNERS)))


def instruct(name: str, text: str, split: Split, drawn: random.Random) -> Instructed:
    """Asks for a text in a style.

    Args:
        name: of the style.
        text: to be said.
        split: the set, which has wordings of its own.
        drawn: chooses the wording.
    """
    sentence = drawn.choice(wordings(name, split))
    leads = sentence[:-1] + ":" if sentence.endswith(".") else sentence
    return Instructed(sentence, f"{leads} {text}", STYLES[name])


def with_styles(lines: Iterable[Line], times: float, seed: int) -> Iterator[Line]:
    """Utterances, each followed by the same text of the same voice in other styles.

    Args:
        lines: as they are usually said.
        times: how often more each is said; the fraction is a chance.
        seed: of what is drawn.
    """
    for line in lines:
        yield line
        drawn = random.Random(f"{seed} styles {line.id} {line.text}")
        for name in drawn_styles(times, drawn):
            asked = instruct(name, line.text, line.split, drawn)
            yield replace(line, id=f"{line.id}-{name}", instructed=asked)
