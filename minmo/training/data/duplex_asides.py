"""What people say over and into speech: back-channels, fillers, beginnings of interruptions.

Each is a line to be synthesised like any other (`minmo data speech`), by every voice of every set:
the words are few and everybody's, so it is the voices that test has to itself. The source of a line
says what it is for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from minmo.training.data.lines import SPLITS, Line
from minmo.training.data.mixing import speakers_of

AsideKind = Literal["back-channel", "filler", "interruption"]

TEXTS: Final[Mapping[AsideKind, tuple[str, ...]]] = {
    "back-channel": (
        *("Mm hm.", "Mhm.", "Uh huh.", "Yeah.", "Yes.", "Right.", "Okay.", "Oh.", "Ah.", "Hmm."),
        *("I see.", "Sure.", "Wow.", "Really.", "Oh yeah.", "Yeah, yeah.", "Oh, nice.", "Oh wow."),
        *("Cool.", "Great.", "Good.", "True.", "That's right.", "Of course.", "No way.", "Ha."),
        *("Interesting.", "Makes sense.", "Got it.", "Oh, okay.", "Right, right.", "Oh, I see."),
    ),
    "filler": (
        *("Uh.", "Um.", "Er.", "Hmm.", "Well.", "Uh, well.", "Um, so.", "Let me see.", "You know."),
        *("Like.", "I mean.", "How do I say it.", "What was it.", "Let me think."),
    ),
    "interruption": (
        *("Wait.", "Stop.", "Wait, wait.", "Hold on.", "Hold on a second.", "Hang on.", "Sorry."),
        *("No, no.", "No, I meant something else.", "No, that's not what I meant.", "Actually."),
        *("Actually, never mind.", "Okay, stop.", "That's enough, thanks.", "Excuse me.", "Hey."),
        *("Just a moment.", "Let me ask you something else.", "Can I ask something?", "Not that."),
        *(
            "Sorry, go back.",
            "Wait, what was that?",
            "Can you say that again?",
            "Be quiet, please.",
        ),
        *("Skip that.", "That's wrong.", "Can you be a bit shorter?", "One more question."),
    ),
}
_SOURCE = "asides-"
_RATES = (0.8, 1.2)


def aside_kind(source: str) -> AsideKind | None:
    """What a clip of this source is for; None for one that is no aside."""
    kind = source.removeprefix(_SOURCE)
    return next((one for one in TEXTS if source.startswith(_SOURCE) and one == kind), None)


def asides(each: int, seed: int, voices: int | None = None) -> Iterator[Line]:
    """Lines of all sets.

    Args:
        each: how many of each kind a voice says, all different.
        seed: of what is drawn; that of `minmo data texts`, so that the sets have the same voices.
        voices: of a set at most; all where None.
    """
    for split in SPLITS:
        number = 0
        for voice in speakers_of(split, seed)[:voices]:
            for kind, texts in TEXTS.items():
                drawn = random.Random(f"{seed} asides {kind} {voice}")
                for text in drawn.sample(texts, min(each, len(texts))):
                    yield Line(
                        id=f"aside-{split}-{number:06d}",
                        text=text,
                        kind="turn",
                        source=f"{_SOURCE}{kind}",
                        split=split,
                        voice=voice,
                        rate=round(drawn.uniform(*_RATES), 3),
                        speaker="user",
                    )
                    number += 1
