"""Texts that a voice can read aloud."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

LONGEST_WORDS = 26
"""More words take longer than a recogniser's clip, and than people speak in a breath."""

_SENTENCE_WORDS = 22
_PART_WORDS = 18
_REPLACED = {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "'"}
_REPLACED |= {"\N{EM DASH}": " - ", "\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "..."}
_REPLACED |= {'"': "", "\N{LEFT DOUBLE QUOTATION MARK}": "", "\N{RIGHT DOUBLE QUOTATION MARK}": ""}
_REPLACED |= {"_": "", "--": " - "}
_SAYABLE = re.compile(r"[A-Za-z0-9 ,.;:?!'$%&/()\-]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”]?\s+(?=[A-Z\"'“])")
_CLAUSE_END = re.compile(r"(?<=[,;:])\s+|\s*--\s*")


def clean(text: str) -> str | None:
    """A text with plain punctuation and spaces; None where it cannot be read aloud in one breath.

    Letters beyond English ones, and signs that are not said, are a reason; so is more than
    `LONGEST_WORDS`.
    """
    # Before the normalisation, which makes three full stops of an ellipsis.
    for found, plain in _REPLACED.items():
        text = text.replace(found, plain)
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    if not _SAYABLE.fullmatch(text) or len(text.split()) > LONGEST_WORDS:
        return None
    return text if words_of(text) else None


def words_of(text: str) -> str:
    """Letters and digits of a text, in lower case: texts with the same are said alike."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))


def sentences(text: str) -> Iterator[str]:
    """Sentences of a text of many; long ones are cut at commas, semicolons, colons and dashes."""
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
        if len(sentence.split()) <= _SENTENCE_WORDS:
            yield sentence
            continue
        part: list[str] = []
        for clause in _CLAUSE_END.split(sentence):
            if part and len(" ".join([*part, clause]).split()) > _PART_WORDS:
                yield " ".join(part)
                part = []
            part.append(clause)
        yield " ".join(part)
