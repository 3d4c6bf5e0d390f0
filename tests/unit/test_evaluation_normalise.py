"""One way of writing English."""

import pytest

from minmo.evaluation.normalise import normalise

TABLE = [
    ("Hello, World!", "hello world"),
    ("1950", "nineteen fifty"),
    ("nineteen-fifty", "nineteen fifty"),
    ("1,950", "one thousand nine hundred fifty"),
    ("one thousand nine hundred and fifty", "one thousand nine hundred fifty"),
    ("1905 and 1900", "nineteen oh five and nineteen hundred"),
    ("2005", "two thousand five"),
    ("two thousand and five", "two thousand five"),
    ("2010", "twenty ten"),
    ("1066", "ten sixty six"),
    ("105", "one hundred five"),
    ("a hundred and five", "one hundred five"),
    ("hundreds and thousands", "hundreds and thousands"),
    ("two hundred men and women", "two hundred men and women"),
    ("3rd", "third"),
    ("the 21st", "the twenty first"),
    ("1980s", "nineteen eighties"),
    ("the 80's", "the eighties"),
    ("3.2", "three point two"),
    (".5", "point five"),
    ("8:30", "eight thirty"),
    ("8:05", "eight oh five"),
    ("8:00", "eight"),
    ("1/2", "one half"),
    ("½", "one half"),
    ("9/11", "nine eleven"),
    ("007", "zero zero seven"),
    ("-5", "minus five"),
    ("10-12", "ten twelve"),
    ("$5", "five dollars"),
    ("$1", "one dollar"),
    ("$1950", "one thousand nine hundred fifty dollars"),
    ("$5.50", "five dollars fifty cents"),
    ("five dollars and fifty cents", "five dollars fifty cents"),
    ("$0.99", "ninety nine cents"),
    ("$3 million", "three million dollars"),
    ("£2.5 billion", "two point five billion pounds"),
    ("50%", "fifty percent"),
    ("50 per cent", "fifty percent"),
    ("Simon & Garfunkel", "simon and garfunkel"),
    ("90°", "ninety degrees"),
    ("St. Helens", "saint helens"),
    ("Main St.", "main street"),
    ("Mt. Everest", "mount everest"),
    ("mt everest", "mount everest"),
    ("Dr. Who", "doctor who"),
    ("Mr. and Mrs. Brown", "mister and missus brown"),
    ("No. 5", "number five"),
    ("No. I said", "no i said"),
    ("U.S.", "us"),
    ("the U S", "the us"),
    ("a U S state", "a us state"),
    ("6 a.m.", "six am"),
    ("J. R. R. Tolkien", "jrr tolkien"),
    ("i o u", "i o u"),
    ("F4U and MP3", "f four u and mp three"),
    ("don't, it\u2019s", "don't it's"),
    ("'tis the dogs' o'clock", "tis the dogs o'clock"),
    ("Padm\u00e9", "padme"),
    ("\u201cwell\u201d\u2014yes\u2026", "well yes"),
    ("", ""),
    ("...", ""),
    ("1000000000000000", " ".join(["one", *["zero"] * 15])),
]


@pytest.mark.parametrize(("written", "expected"), TABLE)
def test_what_is_said_is_written_in_one_way(written: str, expected: str) -> None:
    assert normalise(written) == expected


@pytest.mark.parametrize(("written", "expected"), TABLE)
def test_what_is_normal_stays_so(written: str, expected: str) -> None:
    assert normalise(expected) == expected
