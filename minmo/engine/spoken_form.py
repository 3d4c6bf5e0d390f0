# ruff: noqa: RUF001 - typographic signs are the subject here
"""What is said for what people write: numbers, dates, money, addresses, Markdown, emoji.

Most is done by the English grammars of NVIDIA's NeMo text processing (Zhang et al., "NeMo inverse
text normalization: from development to production", 2021), which `kitten-text-processing` runs in
plain Python. What they get wrong or leave is written out before they read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from minmo.engine.markdown import paragraphs
from minmo.engine.phrases import Ending, PhraseGatherer
from minmo.engine.speakable import plain, speakable

# Six letters for each digit, and the longest text of one `Say` is not reached.
_LONGEST_SENTENCE = 300
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_FRACTIONS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SQUARES = {
    "mm": "millimeters",
    "cm": "centimeters",
    "m": "meters",
    "km": "kilometers",
    "in": "inches",
    "ft": "feet",
    "mi": "miles",
}
_UNITS = {
    "m": "meter",
    "g": "gram",
    "L": "liter",
    "h": "hour",
    "hr": "hour",
    "hrs": "hour",
    "sec": "second",
    "secs": "second",
    "V": "volt",
    "W": "watt",
    "kWh": "kilowatt hour",
    "px": "pixel",
    "KB": "kilobyte",
    "kB": "kilobyte",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "kbit": "kilobit",
    "Mbit": "megabit",
    "Gbit": "gigabit",
    "kb": "kilobit",
    "Mb": "megabit",
    "Gb": "gigabit",
}
_TITLES = {
    "Dr": "Doctor",
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Miz",
    "Prof": "Professor",
    "Capt": "Captain",
    "Col": "Colonel",
    "Gen": "General",
    "Gov": "Governor",
    "Lt": "Lieutenant",
    "Rev": "Reverend",
    "Sen": "Senator",
    "Sgt": "Sergeant",
    "St": "Saint",
    "Mt": "Mount",
    "Ft": "Fort",
}
_NEVER_LAST = {
    "vs": "versus",
    "approx": "approximately",
    "dept": "department",
    "Dept": "Department",
    "est": "established",
}
_OFTEN_LAST = {
    "etc": "et cetera",
    "Inc": "Incorporated",
    "Ltd": "Limited",
    "Corp": "Corporation",
    "Co": "Company",
    "Jr": "Junior",
    "Sr": "Senior",
    "Ave": "Avenue",
    "Blvd": "Boulevard",
    "Rd": "Road",
    "St": "Street",
}
# A sentence, not a name, goes on with these.
_BEGINNINGS = "A|An|And|But|He|How|I|If|In|It|No|She|So|That|The|They|This|We|What|When|Why|You"
_REIGNING = (
    "Albert|Alexander|Alfonso|Benedict|Boniface|Carlos|Catherine|Charles|Christian|Clement|Edward|"
    "Elizabeth|Ferdinand|Francis|Frederick|George|Gregory|Gustav|Henry|Innocent|Ivan|James|John|"
    "John Paul|Juan|Julius|Leo|Leopold|Louis|Ludwig|Margaret|Mary|Maximilian|Mehmed|Napoleon|"
    "Nicholas|Otto|Paul|Peter|Philip|Pius|Ramesses|Ramses|Richard|Robert|Rudolf|Thutmose|Urban|"
    "Victor Emmanuel|Wilhelm|William"
)
_NUMBERED = (
    "Act|Apollo|Appendix|Article|Book|Chapter|Class|Episode|Figure|Grade|Level|Lesson|Part|Phase|"
    "Rocky|Scene|Section|Stage|Step|Super Bowl|Table|Tier|Title|Type|Unit|Volume|War|Wars"
)
_ROMAN = r"(?=[IVX])X{0,3}(?:IX|IV|VI{0,3}|I{0,3})(?![IVX])"
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10}
_MONTHS = (
    "january|february|april|june|july|august|september|october|november|december|"
    "(?:may|march)(?= (?:twenty|thirty|first|second|third|\\w+th)\\b)"
)

Replacement = str | Callable[[re.Match[str]], str]


def _spelled(found: re.Match[str]) -> str:
    """Digits one by one, with a comma where they are grouped."""
    groups = re.findall(r"\d+", found[0])
    said = ", ".join(" ".join(_DIGITS[int(digit)] for digit in group) for group in groups)
    return f"plus {said}" if found[0].startswith("+") else said


def _value(roman: str) -> int:
    values = [_ROMAN_DIGITS[letter] for letter in roman]
    pairs = zip(values, [*values, 0][1:], strict=True)
    return sum(-value if value < following else value for value, following in pairs)


def _ordinal(found: re.Match[str]) -> str:
    value = _value(found[2])
    ending = {1: "st", 2: "nd", 3: "rd"}.get(value % 10 if value // 10 != 1 else 0, "th")
    return f"{found[1]} the {value}{ending}"


def _hashtag(found: re.Match[str]) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Za-z])(?=\d)|_", " ", found[1])
    return f"hashtag {words}"


def _address(found: re.Match[str]) -> str:
    signs = {".": " dot ", "@": " at ", "_": " underscore ", "-": " dash ", "+": " plus "}
    return "".join(signs.get(character, character) for character in found[0])


def _unit(found: re.Match[str]) -> str:
    """A number with its unit."""
    number, unit, per_second = found.groups()
    many = "" if number == "1" else "s"
    return f"{number} {_UNITS[unit]}{many}{' per second' if per_second else ''}"


def _rules(*rules: tuple[str, Replacement]) -> tuple[tuple[re.Pattern[str], Replacement], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


# While the typographic signs are there that Unicode's compatibility forms take apart.
_TYPOGRAPHIC = _rules(
    (rf"(?<=\d)([{_FRACTIONS}])", r" \1"),
    (rf"(?<=\d)\s?({'|'.join(_SQUARES)})²", lambda found: f" square {_SQUARES[found[1]]}"),
    (rf"(?<=\d)\s?({'|'.join(_SQUARES)})³", lambda found: f" cubic {_SQUARES[found[1]]}"),
    (r"(?<=[\w)])([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda found: f"^{found[1].translate(_SUPERSCRIPTS)}"),
    (r"(?<=\d)′(?=\d)", "'"),
    (r"(?<=\d)″", '"'),
    # Stars that are no emphasis.
    (r"(?<=[\w)])\*\*(?=\d)|(?<=\d) \*\* (?=\d)", " to the power of "),
    (r"(?<=\d)[ \t]*\*[ \t]*(?=\d)", " times "),
    # Full stops that look like ends of sentences.
    (
        rf"\b((?:[A-Z]\.){{2,}})(?=\s+(?!(?:{_BEGINNINGS})\b)[A-Z])",
        lambda found: found[1].replace(".", ""),
    ),
    (r"\b([ap])\.m\.(?=[,;:?!)]|\s+(?:[A-Z]{2,4}\b|[a-z\d]))", r"\1m"),
)
_WRITTEN_OUT = _rules(
    (r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+", _address),
    (r"(?<=\w)_(?=\w)", " "),
    # Numbers that are no quantities: telephones, versions, identifiers.
    (r"(?<![\w.-])(\d{1,2})-(\d{1,2})-(\d{4})(?![\w-])", r"\1/\2/\3"),
    (r"(?<![\w.-])(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?Z?(?!\w)", r"\1 at \2"),
    (
        r"(?<![\w.$-])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])",
        _spelled,
    ),
    (r"(?<![\w.$-])\+\d{1,3}(?:[ .-]\d{2,5}){2,5}(?![\w-])", _spelled),
    (r"(?<![\w.$-])\d{3}-\d{4}(?![\w-])", _spelled),
    (r"(?<![\w.-])(?!\d{4}-\d\d-\d\d(?!\d))\d+(?:-\d+){2,}(?![\w-])", _spelled),
    (r"\b([Vv]ersion )?v(?=\d)", lambda found: found[1] or "version "),
    (r"(?<![\w.])\d+\.\d+\.\d+(?!\.?\w)", lambda found: found[0].replace(".", " point ")),
    (r"(?<![\d/])24/7(?![\d/])", "twenty four seven"),
    (r"(?<![\d/.])(\d+)/\1(?![\d/])", r"\1 out of \1"),
    (
        r"(\d\s?[A-Za-z]{0,2})/(?=(?:second|minute|hour|hr|day|week|month|year|person)\b)",
        r"\1 per ",
    ),
    (r"\b911\b", "nine one one"),
    (r"(\d(?:st|nd|rd|th))-(?=[a-z])", r"\1 "),
    (r"(\d+)h\s?(\d+)m(?:in)?\b", r"\1 hours \2 minutes"),
    (r"(?<![\d/])9/11(?![\d/])", "nine eleven"),
    # From one to another.
    (r"([$£€])(\d[\d,.]*\d|\d)\s?[-–]\s?[$£€]?(?=\d)", r"\1\2 to \1"),
    (
        r"(?<![\w-])(\d+(?:[.,:]\d+)*(?:%|°)?)\s?[-–]\s?"
        r"(?=\d+(?:[.,:]\d+)*(?:%|°|[a-z]{1,2}\b|(?![\w-])))",
        r"\1 to ",
    ),
    # Units and signs.
    (r"(\d)'\s?(\d{1,2})\"", r"\1 feet \2 inches"),
    (r"(?<![\d:])(\d+):(\d)(?![\d:])", r"\1 to \2"),
    (r"(?<!\S)-(?=[$£€]\d)", "minus "),
    (rf"(?<![$£€\d.,])(\d[\d.,]*)\s?({'|'.join(sorted(_UNITS, key=len)[::-1])})(/s|ps)?\b", _unit),
    (r"(\d\.\d+|\d )s\b", r"\1 seconds"),
    (r"(?<=\d)\s?in(?=[.,;)]|\s*$)", " inches"),
    (r"(?<=\d)\s?bn\b", " billion"),
    (r"(\d)x(?=\s)", r"\1 times"),
    (r"~\s?(?=\d)", "about "),
    (r"\^2(?!\d)", " squared"),
    (r"\^3(?!\d)", " cubed"),
    (r"\^(-?\d+)", r" to the power of \1"),
    (r"\band/or\b", "and or"),
    (r"\b([Ss]?he|[Hh]is|[Hh]ers?|[Hh]im)/(s?he|his|hers?|him)\b", r"\1 or \2"),
    (r"(?<![\w/])w/o(?= )", "without"),
    (r"(?<![\w/])w/(?= ?[a-z])", "with "),
    (r"\s*=+\s*", " equals "),
    (r"\b([ap])\.m\.", r"\1m."),
    (r"#(?=\d)", "number "),
    (r"(?<!\w)#(\w+)", _hashtag),
    (r"(?<![\w.])@(?=\w)", "at "),
    (r"\bNos?\.\s?(?=\d)", "number "),
    # Names.
    (rf"\b({_REIGNING}) (?!I\b)({_ROMAN})\b", _ordinal),
    (rf"\b({_NUMBERED}) ({_ROMAN})\b", lambda found: f"{found[1]} {_value(found[2])}"),
    (
        rf"\b({'|'.join(_TITLES)})\.\s?(?!(?:{_BEGINNINGS})\b)(?=[A-Z])",
        lambda found: f"{_TITLES[found[1]]} ",
    ),
    (rf"\b({'|'.join(_NEVER_LAST)})\.", lambda found: _NEVER_LAST[found[1]]),
    (
        rf"\b({'|'.join(_OFTEN_LAST)})\.(\s+[A-Z]|\s*$)?",
        lambda found: _OFTEN_LAST[found[1]] + ("" if found[2] is None else f".{found[2]}"),
    ),
)
# What the grammars change: digits, signs, full stops within a word, Roman numerals.
_NEEDS_GRAMMAR = re.compile(r"[^A-Za-z,;:!?'\"().-]|\b[IVX]{2,}\b|\.\w")
# As in "the 5th of May".
_CONTEXT = 2
_OPENING = "\"'([{*_#"
_SPACE_BEFORE = re.compile(r"\s+(?=[,.;:!?](?:\s|$))")
_NUMBER = re.compile(r"[0-9]+")
_MONTH = re.compile(rf"\b(?:{_MONTHS})\b")


class SpokenForm(NamedTuple):
    """A text, or a sentence, as it is said.

    Attributes:
        text: printable ASCII without digits; empty if there is no word.
        unsayable: letters, digits and pictures that no English word stands for, in order.
    """

    text: str
    unsayable: str


def spoken_form(text: str) -> SpokenForm:
    """Writes a text as it is said.

    Args:
        text: English, plain or in Markdown, of any length.
    """
    sentences = [spoken_sentence(sentence) for sentence in written_sentences(text)]
    return SpokenForm(
        " ".join(said.text for said in sentences if said.text),
        "".join(said.unsayable for said in sentences),
    )


def spoken_sentence(sentence: str) -> SpokenForm:
    """Writes a sentence as it is said.

    The grammars take some milliseconds a character, where there is more than words; the first time
    in a process a tenth of a second more.

    Args:
        sentence: of `written_sentences`.
    """
    said = speakable(_normalised(sentence))
    return SpokenForm(_SPACE_BEFORE.sub("", said.text), said.unsayable)


def written_sentences(text: str) -> Iterator[str]:
    """The sentences of a text as they are written, without Markdown; long ones in parts."""
    for paragraph in paragraphs(_replaced(text, _TYPOGRAPHIC)):
        gatherer = PhraseGatherer()
        gatherer.push(paragraph)
        gatherer.end()
        sentence = ""
        while (phrase := gatherer.next()) is not None:
            if len(sentence) + len(phrase.text) > _LONGEST_SENTENCE:
                yield sentence
                sentence = ""
            sentence += phrase.text
            if phrase.ending is Ending.SENTENCE:
                yield sentence
                sentence = ""
        if sentence:
            yield sentence


def _replaced(text: str, rules: tuple[tuple[re.Pattern[str], Replacement], ...]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _normalised(sentence: str) -> str:
    """A sentence with its numbers and abbreviations as words."""
    said = _replaced(plain(sentence).strip(), _WRITTEN_OUT)
    said = " ".join(_stretches(said.split()))
    # Of numbers without end the grammars know nothing; they write months small.
    said = _MONTH.sub(lambda found: found[0].capitalize(), _NUMBER.sub(_spelled, said))
    begins_small = sentence.lstrip(_OPENING)[:1].islower()
    return said if begins_small else f"{said[:1].upper()}{said[1:]}"


def _stretches(words: Sequence[str]) -> Iterator[str]:
    """Words as they are, and others, with what they may belong to, as the grammars have them."""
    busy = {
        near
        for place, word in enumerate(words)
        if _NEEDS_GRAMMAR.search(word) or (word.endswith(".") and place + 1 < len(words))
        for near in range(place - _CONTEXT, place + _CONTEXT + 1)
    }
    for is_busy, stretch in groupby(range(len(words)), busy.__contains__):
        text = " ".join(words[place] for place in stretch)
        if is_busy:
            text = _NUMBER.sub(lambda found: _by_grammar(found[0]), _by_grammar(text))
        yield text


def _by_grammar(text: str) -> str:
    try:
        return _grammar()(text)
    except ValueError:
        # No path leads through it.
        return text


@lru_cache(maxsize=1)
def _grammar() -> Callable[[str], str]:
    from kitten_text_processing import Normalizer

    grammar = Normalizer(lang="en")
    return lambda text: str(grammar.normalize(text, punct_post_process=True))
