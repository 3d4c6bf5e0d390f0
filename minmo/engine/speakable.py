# ruff: noqa: RUF001 - typographic signs are the subject here
"""What of a text an English voice can say, as plain words.

Written answers carry marks that nobody says: Markdown, emoji, links, typographic signs. `speakable`
turns a phrase into what is read out, which may be nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_MAX_SHOWN = 40
# NFKC knows no plain form of these.
_PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "‚": "'",
        "‛": "'",
        "′": "'",
        "“": '"',
        "”": '"',
        "„": '"',
        "«": '"',
        "»": '"',
        "″": '"',
        "‐": "-",
        "‑": "-",
        "‒": "-",
        "−": "-",
        "—": ", ",
        "―": ", ",
        "•": ", ",
        "·": " ",
        "⁄": "/",
        "æ": "ae",
        "Æ": "AE",
        "œ": "oe",
        "Œ": "OE",
        "ø": "o",
        "Ø": "O",
        "ß": "ss",
        "ð": "d",
        "þ": "th",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "ı": "i",
        "¢": " cents ",
        "§": " section ",
        "±": " plus or minus ",
        "×": " times ",
        "÷": " divided by ",
        "≈": " about ",
        "≤": " at most ",
        "≥": " at least ",
        "≠": " is not ",
        "→": ", ",
        "µ": "micro",
        "μ": "micro",
        "π": "pi",
        "©": " copyright ",
        "®": "",
    }
)

_REPLACEMENTS = tuple(
    (re.compile(pattern, re.MULTILINE | re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"```\w*", " "),  # fences, with the name of their language
        (r"</?[a-z!][^<>]*>", " "),  # tags
        (r"^\s*(?:[-*_][ \t]*){3,}$", " "),  # rules
        (r"^\s*(?:>[ \t]*)+", " "),  # quotations
        (r"^\s*#{1,6}(?=\s|$)", " "),  # headings
        (r"^\s*[-*+](?=\s|$)", " "),  # bullets
        (r"([£€¥])\s?(\d[\d,]*(?:\.\d+)?)", r"\2 \1"),
        (r"£", " pounds "),
        (r"€", " euros "),
        (r"¥", " yen "),
        (r"#(?=\d)", " number "),
        (r"\s<=?\s", " less than "),
        (r"\s>=?\s", " greater than "),
        (r"°\s?c\b", " degrees Celsius"),
        (r"°\s?f\b", " degrees Fahrenheit"),
        (r"°", " degrees "),
        (r"(?<=\d)\s*\*\s*(?=\d)", " times "),
        (r"(?<=\d)\s*–\s*(?=\d)", " to "),
        (r"–|-{2,}|\s-\s|\.{2,}", ", "),
        (r"\+", " plus "),
        (r"=", " equals "),
        (r"&", " and "),
        (r"[*_`~^|\\<>\[\]{}#]", " "),
        (r"([!?,;:])[!?,;:]+", r"\1"),
        (r"([^\w\s])\1{2,}", r"\1"),
        (r"\s+", " "),
        (r"\s+(?=[,.;:!?](?:\s|$))", ""),
        (r"(?<=[,;:])(?:\s*[,;:])+", ""),
        (r"^[\s,.;:!?-]+(?=\s|$)", ""),
    )
)
# A phrase may begin within a link, so its words are optional.
_LINK = re.compile(r"(?:!?\[([^\[\]]*))?\]\([^()\s]*\)")
_URL = re.compile(
    r"(?:https?://(?:www\.)?|www\.)([\w-]+(?:\.[\w-]+)+)(?:[^\s)\]>]*[^\s)\]>.,;:!?])?",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z0-9]")


@dataclass(frozen=True)
class Spoken:
    """What is read out of a text.

    Attributes:
        text: printable ASCII without markup; empty if no word is left.
        unsayable: letters, digits and pictures that no word stands for, in order.
    """

    text: str
    unsayable: str


def speakable(text: str) -> Spoken:
    """Turns a phrase, or a whole text, into what an English voice reads out.

    Markdown's marks and tags go, a link keeps its words, an address its host ("example dot com"),
    signs become words, accents fall off. Letters of other scripts and emoji are left out and
    reported.
    """
    text = plain(text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    kept: list[str] = []
    unsayable: list[str] = []
    for character in unicodedata.normalize("NFKD", text):
        if character.isascii():
            kept.append(character if character.isprintable() else " ")
        elif unicodedata.category(character)[0] in "LNS":
            unsayable.append(character)
            kept.append(" ")
    said = " ".join("".join(kept).split())
    return Spoken(said if _WORD.search(said) else "", "".join(unsayable))


def plain(text: str) -> str:
    """A text with plain signs for typographic ones, and of a link its words or its host alone."""
    text = text.translate(_PLAIN)
    text = _LINK.sub(lambda found: found[1] or " ", text)
    text = _URL.sub(lambda found: found[1].replace(".", " dot "), text)
    return unicodedata.normalize("NFKC", text).translate(_PLAIN)


def shown(text: str) -> str:
    """A text for a message: its beginning if it is long."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
