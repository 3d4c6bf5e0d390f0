# ruff: noqa: RUF001 - typographic quotes and dashes are the subject here
"""Gathers the LLM's text tokens into phrases, for a voice that needs whole ones.

The first phrase is short, so that speech begins early; later ones are sentences, or clauses of long
sentences. Where a phrase ends depends on the text alone, not on how tokens cut it or when they
come. The phrases put together are the text, to the last space.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

MAX_PHRASE_CHARACTERS = 200
"""Longest phrase; a longer word is cut."""


class Ending(Enum):
    """What ends a phrase, and so how long the pause after it is."""

    SENTENCE = auto()
    CLAUSE = auto()
    WORD = auto()
    """Nothing: the sentence goes on without a pause."""


@dataclass(frozen=True)
class Phrase:
    """A stretch of text to say in one breath.

    Attributes:
        text: as it was written, with the space after it.
        token_ends: for each token that ends here, where in `text` the last of it that is no space
            ends, in order; 0 for a token that has none.
        ending: what ends it.
    """

    text: str
    token_ends: tuple[int, ...]
    ending: Ending


@dataclass(frozen=True)
class _Limits:
    """When a phrase may end.

    Attributes:
        clause_words: words from which the end of a clause ends it.
        words: words from which it ends at a good place between two words.
        hard_words: words from which it ends at any.
    """

    clause_words: int
    words: int
    hard_words: int


# Speech of the first phrase (about 2 s) covers the time in which the LLM makes the second.
_FIRST = _Limits(clause_words=2, words=5, hard_words=8)
_SECOND = _Limits(clause_words=4, words=10, hard_words=16)
_LATER = _Limits(clause_words=6, words=20, hard_words=30)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words(
    "mr mrs ms dr prof st sr jr gen col sgt capt lt rev hon gov sen rep pres vs etc e.g i.e cf al "
    "approx dept est fig vol inc ltd co corp ave blvd rd mt ft no nos a.m p.m u.s u.k u.n "
    "ph.d m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov dec"
)
# These end sentences as well: what follows decides.
_OFTEN_LAST = _words("etc a.m p.m u.s u.k inc ltd co corp jr sr ph.d m.d no")
# Words that lean on the next one: a break after them is heard as a stumble.
_LEANING = _words(
    "a an the this that these those my your his her its our their some any no every each "
    "of in on at to for from with by as into onto about over under between through during "
    "and or but nor so if when while because although than that which who whose where what how "
    "is are was were be been am has have had do does did can could will would shall should may "
    "might must not very too more most less i you he she it we they there it's i'm you're "
    "we're they're that's there's don't doesn't isn't aren't can't"
)
_SPACE = re.compile(r"\s+")
_OPENING = "\"'([{*_“‘`"
_CLOSING = "\"')]}*_”’`"
_CLAUSE_ENDS = (",", ";", ":", "—", "–", "--", "…", "...")
_HAS_WORD = re.compile(r"\w")
_INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")


class PhraseGatherer:
    """Takes tokens, gives phrases."""

    def __init__(self) -> None:
        self._text = ""
        self._token_ends: list[int] = []
        self._ended = False
        self._given = 0

    @property
    def finished(self) -> bool:
        """True once all text has been given as phrases, after `end`."""
        return self._ended and not (self._text or self._token_ends)

    def push(self, text: str) -> None:
        """Takes the text of the next token; it may be empty."""
        self._text += text
        self._token_ends.append(len(self._text.rstrip()))

    def end(self) -> None:
        """No more tokens follow: what is left is phrases too."""
        self._ended = True

    def next(self) -> Phrase | None:
        """The next phrase; None if it takes more tokens to know its end, or all is given."""
        cut = self._find_end()
        if cut is None:
            if not self._ended or self.finished:
                return None
            cut = len(self._text), self._last_ending()
        length, ending = cut
        phrase = self._text[:length]
        last = length == len(self._text) and self._ended
        ends = [end for end in self._token_ends if last or end <= length]
        self._text = self._text[length:]
        self._token_ends = [end - length for end in self._token_ends[len(ends) :]]
        self._given += bool(_HAS_WORD.search(phrase))
        return Phrase(phrase, tuple(ends), ending)

    def _find_end(self) -> tuple[int, Ending] | None:
        """Length and ending of the next phrase; decided on by no more than the character after."""
        limits = (_FIRST, _SECOND, _LATER)[min(self._given, 2)]
        boundary = None
        for boundary_after, ending in self._boundaries():
            length, words = boundary_after
            if length > MAX_PHRASE_CHARACTERS:
                break
            boundary = length, ending
            if self._is_end(length, words, ending, limits):
                return boundary
        if len(self._text) > MAX_PHRASE_CHARACTERS:
            return boundary or (MAX_PHRASE_CHARACTERS, Ending.WORD)
        return None

    def _boundaries(self) -> Iterator[tuple[tuple[int, int], Ending]]:
        """Every place where a word follows a space: (its position, words before it), the ending."""
        words = 0
        start = 0
        for space in _SPACE.finditer(self._text):
            if space.end() == len(self._text):
                return
            word = self._text[start : space.start()]
            words += bool(_HAS_WORD.search(word))
            following = self._text[space.end()]
            if words:
                ending = _ending_of(word, following)
                if "\n" in space.group() and ending is not Ending.SENTENCE:
                    ending = Ending.SENTENCE
                yield (space.end(), words), ending
            start = space.end()

    def _is_end(self, length: int, words: int, ending: Ending, limits: _Limits) -> bool:
        match ending:
            case Ending.SENTENCE:
                return True
            case Ending.CLAUSE:
                return words >= limits.clause_words
            case Ending.WORD:
                before = self._text[:length].split()
                return words >= limits.hard_words or (
                    words >= limits.words and _may_part(before[-1], self._text[length])
                )

    def _last_ending(self) -> Ending:
        words = self._text.split()
        return _ending_of(words[-1], "") if words else Ending.WORD


def _ending_of(word: str, following: str) -> Ending:
    """What ends after `word` if `following` is the next character that is no space ("" if none)."""
    bare = word.rstrip(_CLOSING)
    if bare.endswith(("!", "?")):
        return Ending.SENTENCE
    if bare.endswith(_CLAUSE_ENDS) or word.endswith(")"):
        return Ending.CLAUSE
    if bare.endswith("."):
        return Ending.SENTENCE if _ends_sentence(bare[:-1], following) else Ending.WORD
    return Ending.WORD


def _ends_sentence(word: str, following: str) -> bool:
    """Whether the full stop after `word` ends a sentence."""
    word = word.lstrip(_OPENING)
    if following.islower():
        return False
    name = word.lower()
    if name in _OFTEN_LAST:
        return not following.isdigit()
    # "J. Smith", "e.g. Paris", and the number of an item of a list.
    is_short = name in _ABBREVIATIONS or (name != "i" and _INITIAL.fullmatch(word) is not None)
    return not following or not (is_short or (word.isdigit() and len(word) < 3))


def _may_part(word: str, following: str) -> bool:
    """Whether a breath between `word` and what begins with `following` sounds natural."""
    bare = word.strip(_OPENING + _CLOSING).lower()
    is_name = word[:1].isupper() and following.isupper()
    return not (bare in _LEANING or bare.rstrip(".").isdigit() or bare.endswith(".") or is_name)
