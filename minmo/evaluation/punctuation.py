"""How well a transcript is punctuated: full stops, commas and question marks on aligned words."""

from __future__ import annotations

import re

from minmo.evaluation.normalise import normalise

MARKS = (".", ",", "?")
# What else stands at the end of a clause, as the nearest of the three.
_AS = {"!": ".", ";": ",", ":": ",", "\u2026": "."}
_CLOSING = re.compile(r"[\"'\u201d\u2019)\]]+$")
_ABBREVIATED = re.compile(
    r"(?:\w\.)+\w\.?|(?:dr|mr|mrs|ms|st|mt|jr|sr|vs|etc|prof)\.", re.IGNORECASE
)


def marked_words(text: str) -> list[tuple[str, str]]:
    """A text's normalised words, each with the mark behind it or "".

    A full stop that belongs to an abbreviation is none, unless the text ends with it.
    """
    found: list[tuple[str, str]] = []
    tokens = text.split()
    for number, token in enumerate(tokens):
        bare = _CLOSING.sub("", token)
        mark = _AS.get(bare[-1:], bare[-1:])
        is_last = number == len(tokens) - 1
        if mark not in MARKS or (not is_last and _ABBREVIATED.fullmatch(bare)):
            mark = ""
        words = normalise(token).split()
        found += [(word, "") for word in words]
        if mark and found:
            # What is punctuation alone, as in "word ," belongs to the word before.
            found[-1] = (found[-1][0], found[-1][1] or mark)
    return found


def mark_counts(expected: str, found: str) -> dict[str, tuple[int, int, int]]:
    """Marks of a transcript against those of the reference.

    Words are aligned with the fewest edits; a substituted word counts as aligned, so that a
    misheard word does not cost its mark. Marks behind words that are aligned with none are missed,
    or too many.

    Returns:
        For each of `MARKS`: right ones, those in the transcript, those in the reference.
    """
    import jiwer

    wanted, heard = marked_words(expected), marked_words(found)
    counts = {
        mark: [0, sum(m == mark for _, m in heard), sum(m == mark for _, m in wanted)]
        for mark in MARKS
    }
    if wanted and heard:
        first, second = (" ".join(word for word, _ in side) for side in (wanted, heard))
        (chunks,) = jiwer.process_words(first, second).alignments
        for chunk in chunks:
            if chunk.type in ("equal", "substitute"):
                pairs = zip(
                    wanted[chunk.ref_start_idx : chunk.ref_end_idx],
                    heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
                    strict=True,
                )
                for (_, mark), (_, other) in pairs:
                    if mark and mark == other:
                        counts[mark][0] += 1
    return {mark: (right, made, there) for mark, (right, made, there) in counts.items()}
