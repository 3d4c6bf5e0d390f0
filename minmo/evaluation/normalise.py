"""One way of writing English, so that word error rates compare words and not spelling.

Applied to what was said and to what was written down. In order:

- Unicode is folded (NFKC), accents are dropped, curly quotes become straight, all is lower case.
- Titles and other abbreviations are written out: `Dr.` doctor, `Mr.` mister, `Mt.` mount, `vs.`
  versus, `etc.` et cetera, `No. 5` number five. `St.` is saint before a word and street elsewhere.
- Letters with dots are one word: `U.S.` us, `a.m.` am; so are letters that stand alone one after
  another: `u s` us (an article before them stays: `a u s` a us).
- Numbers are spelled out without hyphens, commas or "and" (`num2words`): `105` one hundred five.
  Four digits without a comma from 1010 to 1999 and from 2010 to 2099 are read as a year, others as
  a count: `1950` nineteen fifty, `1,950` one thousand nine hundred fifty. `3rd` third, `1980s`
  nineteen eighties, `3.2` three point two, `8:30` eight thirty, `1/2` one half, `007` zero zero
  seven. "and" after hundred, thousand and the like is dropped from words too, and `a hundred` is
  one hundred.
- Signs are words: `$5` five dollars, `$5.50` five dollars fifty cents, `$3 million` three million
  dollars, `50%` fifty percent, `&` and, `+` plus, `@` at, `#` number, `°` degrees.
- All other punctuation separates words; an apostrophe within a word stays, so contractions stay as
  they are. British spelling and fillers stay too.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from minmo.evaluation.errors import needs_extra

_ABBREVIATIONS = {
    r"dr\.?": "doctor",
    r"mr\.?": "mister",
    r"mrs\.?": "missus",
    r"mt\.?(?=\s+[a-z])": "mount",
    r"ft\.(?=\s+[a-z])": "fort",
    r"st\.?(?=\s+[a-z])": "saint",
    r"st\.?": "street",
    r"ave\.": "avenue",
    r"blvd\.?": "boulevard",
    r"jr\.?": "junior",
    r"sr\.?": "senior",
    r"vs\.?": "versus",
    r"etc\.?": "et cetera",
    r"prof\.": "professor",
    r"gen\.": "general",
    r"capt\.": "captain",
    r"col\.": "colonel",
    r"lt\.": "lieutenant",
    r"sgt\.": "sergeant",
    r"gov\.": "governor",
    r"sen\.": "senator",
    r"rep\.": "representative",
    r"rev\.": "reverend",
    r"no\.(?=\s*\d)": "number",
    r"per cent": "percent",
}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u2032": "'", "`": "'"})
_CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
}
_SIGNS = {"&": "and", "%": "percent", "+": "plus", "@": "at", "#": "number", "°": "degrees"}
_FRACTIONS = {
    "1/2": "one half",
    "1/3": "one third",
    "2/3": "two thirds",
    "1/4": "one quarter",
    "3/4": "three quarters",
}
_LONGEST_NUMBER = 15
_SMALL_NUMBER = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|"
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|"
    "thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|"
    "thirtieth|fortieth|fiftieth|sixtieth|seventieth|eightieth|ninetieth"
)
_SCALES = "hundred|thousand|million|billion|trillion"

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_MONEY = re.compile(rf"([$£€])\s?({_NUMBER})(?:[\s-]({_SCALES})\b)?")
_CENTS = re.compile(r"(\d+)\s?¢")
_FRACTION = re.compile(r"(?<![\d/])(\d/\d)(?![\d/])")
_TIME = re.compile(r"\b(\d{1,2}):(\d\d)\b(?!:)")
_ORDINAL = re.compile(r"\b(\d[\d,]*)(?:st|nd|rd|th)\b")
_DECADE = re.compile(r"(?<![\w.,])(\d+)'?s\b")
_MINUS = re.compile(r"(?<!\S)[-\u2212](?=\.?\d)")
_INITIALISM = re.compile(r"\b[a-z](?:\.[a-z])+\b\.?")
_ONE_OF = re.compile(rf"\ba (?=(?:{_SCALES})\b)")
_AND = re.compile(
    r"(?:(?<=hundred )|(?<=thousand )|(?<=[mbr]illion )|(?<=dollar )|(?<=dollars )|(?<=euros )"
    r"|(?<=pound )|(?<=pounds ))and "
    rf"(?=(?:{_SMALL_NUMBER})\b)"
)
_LETTERS_ALONE = re.compile(r"(?<![\w'])[a-z](?: [a-z])+(?![\w'])")
_ABBREVIATION = re.compile(
    "|".join(rf"(?P<a{number}>\b{key})(?!\w)" for number, key in enumerate(_ABBREVIATIONS))
)
_WRITTEN_OUT = list(_ABBREVIATIONS.values())


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """A text's words, each written in one way, with a space between; see the module.

    Raises:
        EvaluationError: `num2words` is not installed.
    """
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).replace("\u2044", "/")
    decomposed = unicodedata.normalize("NFD", text)
    text = "".join(c for c in decomposed if not unicodedata.combining(c)).lower()
    text = _ABBREVIATION.sub(_written_out, text)
    text = _INITIALISM.sub(lambda match: match[0].replace(".", ""), text)
    text = _numbers(text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, f" {word} ")
    text = re.sub(r"[^a-z0-9' ]+", " ", text)
    text = re.sub(r"(?<!\w)'+|'+(?!\w)", " ", text)
    text = " ".join(text.split())
    text = _ONE_OF.sub("one ", text)
    text = _AND.sub("", text)
    return _LETTERS_ALONE.sub(_joined, text)


def _written_out(match: re.Match[str]) -> str:
    assert match.lastgroup is not None
    return f"{_WRITTEN_OUT[int(match.lastgroup[1:])]} "


def _joined(match: re.Match[str]) -> str:
    letters = match[0].split()
    if letters[0] == "a":
        return " ".join(["a", "".join(letters[1:])]) if len(letters) > 2 else match[0]
    # "i" and "o" are words: two that stand side by side spell nothing.
    spelled = [letter for letter in letters if letter not in "aio"]
    return "".join(letters) if len(spelled) > 1 else match[0]


def _numbers(text: str) -> str:
    """The text with what has digits in it spelled out."""
    text = _FRACTION.sub(lambda m: f" {_FRACTIONS.get(m[1], m[1].replace('/', ' '))} ", text)
    text = _MONEY.sub(_money, text)
    text = _CENTS.sub(lambda m: f" {_spell(m[1])} {'cent' if m[1] == '1' else 'cents'} ", text)
    text = _TIME.sub(_time, text)
    text = _ORDINAL.sub(lambda m: f" {_words(m[1].replace(',', ''), 'ordinal')} ", text)
    text = _DECADE.sub(lambda m: f" {_plural(_spell(m[1]))} ", text)
    text = _MINUS.sub("minus ", text)
    return re.sub(_NUMBER, lambda m: f" {_spell(m[0])} ", text)


def _money(match: re.Match[str]) -> str:
    sign, amount, scale = match.groups()
    one, many, small_one, small_many = _CURRENCIES[sign]
    if scale:
        return f" {_spell(amount, count=True)} {scale} {many} "
    whole, _, part = amount.partition(".")
    said = []
    if int(whole.replace(",", "") or 0) or not part.strip("0"):
        said.append(f"{_spell(whole or '0', count=True)} {one if whole == '1' else many}")
    if part.strip("0"):
        cents = int(part[:2].ljust(2, "0"))
        said.append(f"{_words(str(cents))} {small_one if cents == 1 else small_many}")
    return f" {' '.join(said)} "


def _time(match: re.Match[str]) -> str:
    hour, minute = match.groups()
    said = _words(hour.lstrip("0") or "0")
    if minute != "00":
        said += f" oh {_words(minute[1])}" if minute[0] == "0" else f" {_words(minute)}"
    return f" {said} "


def _spell(number: str, *, count: bool = False) -> str:
    """A number as words; four digits as a year unless it is sure to be a count."""
    if "." in number:
        whole, part = number.split(".")
        digits = " ".join(_words(digit) for digit in part)
        return f"{_spell(whole, count=True)} point {digits}" if whole else f"point {digits}"
    digits = number.replace(",", "")
    if len(digits) > _LONGEST_NUMBER or (digits.startswith("0") and len(digits) > 1):
        return " ".join(_words(digit) for digit in digits)
    value = int(digits)
    is_year = len(number) == 4 and (1010 <= value <= 1999 or 2010 <= value <= 2099)
    return _words(digits, "year" if is_year and not count else "cardinal")


def _plural(words: str) -> str:
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return f"{words}es" if words.endswith("x") else f"{words}s"


@lru_cache(maxsize=4096)
def _words(digits: str, kind: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ImportError as error:
        raise needs_extra("num2words") from error
    said = str(num2words(int(digits), to=kind, lang="en"))
    return " ".join(re.sub(r"[-,]", " ", said).replace(" and ", " ").split())
