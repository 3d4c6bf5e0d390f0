import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minmo.engine.phrases import MAX_PHRASE_CHARACTERS, Ending, Phrase, PhraseGatherer

TEXTS = st.one_of(
    st.text(max_size=600),
    st.text(alphabet="ab .,!?\n", max_size=600),
    st.lists(
        st.sampled_from(
            [
                "Dr.",
                "e.g.",
                "3.14",
                "the",
                "of",
                "word",
                "end.",
                "so,",
                "No.",
                "5",
                "(x)",
                "\n",
                "😀",
            ]
        ),
        max_size=120,
    ).map(" ".join),
)


def gather(tokens: list[str]) -> list[Phrase]:
    gatherer = PhraseGatherer()
    phrases = []
    for token in tokens:
        gatherer.push(token)
        while (phrase := gatherer.next()) is not None:
            phrases.append(phrase)
    gatherer.end()
    while (phrase := gatherer.next()) is not None:
        phrases.append(phrase)
    assert gatherer.finished
    return phrases


def texts(text: str) -> list[str]:
    return [phrase.text.strip() for phrase in gather(re.findall(r"\s*\S+|\s+", text))]


@given(TEXTS, st.data())
def test_however_tokens_cut_the_text_the_phrases_are_the_same(
    text: str, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=40).map(sorted))
    edges = [0, *cuts, len(text)]
    tokens = [text[start:end] for start, end in pairwise(edges)]
    expected = [(phrase.text, phrase.ending) for phrase in gather(list(text))]
    assert [(phrase.text, phrase.ending) for phrase in gather(tokens) if phrase.text] == expected


@given(st.lists(st.text(max_size=30), max_size=60))
def test_no_character_and_no_token_is_lost(tokens: list[str]) -> None:
    phrases = gather(tokens)
    assert "".join(phrase.text for phrase in phrases) == "".join(tokens)
    assert sum(len(phrase.token_ends) for phrase in phrases) == len(tokens)


@given(TEXTS)
def test_phrases_are_bounded_and_token_ends_lie_within(text: str) -> None:
    for phrase in gather(re.findall(r"\s*\S{1,4}|\s+", text)):
        assert len(phrase.text) <= MAX_PHRASE_CHARACTERS
        assert list(phrase.token_ends) == sorted(phrase.token_ends)
        assert all(0 <= end <= len(phrase.text) for end in phrase.token_ends)


@given(st.lists(st.text("abcdefgh.,", min_size=1, max_size=20), min_size=1, max_size=80))
def test_a_word_is_never_split(words: list[str]) -> None:
    spoken = [
        word for phrase in gather([f"{word} " for word in words]) for word in phrase.text.split()
    ]
    assert spoken == words


def test_a_word_longer_than_a_phrase_is_cut() -> None:
    assert [len(phrase) for phrase in texts("x" * 450)] == [200, 200, 50]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid 3.14 dollars.", ["Dr. Smith paid 3.14 dollars."]),
        ("Fruit, e.g. apples.", ["Fruit, e.g. apples."]),
        ("It has sights, e.g. Big Ben.", ["It has sights,", "e.g. Big Ben."]),
        ("J. R. R. Tolkien wrote.", ["J. R. R. Tolkien wrote."]),
        ("Go at 5 p.m. Then rest.", ["Go at 5 p.m.", "Then rest."]),
        ("No. 5 is fine.", ["No. 5 is fine."]),
        ("No. I think not.", ["No.", "I think not."]),
        ("The U.S. and Canada.", ["The U.S. and Canada."]),
        ("See bldg. three there.", ["See bldg. three there."]),
        ("Really? Yes! Good.", ["Really?", "Yes!", "Good."]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("1. Milk\n2. Eggs", ["1. Milk", "2. Eggs"]),
        ("It cost $1,000.50 today.", ["It cost $1,000.50 today."]),
    ],
)
def test_sentences_end_where_people_end_them(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


def test_the_first_phrase_ends_at_the_first_clause() -> None:
    assert texts("The capital is Paris, and it lies on the river called the Seine.")[0] == (
        "The capital is Paris,"
    )


def test_the_first_phrase_is_known_after_a_few_words_without_any_mark() -> None:
    gatherer = PhraseGatherer()
    for token in ["Water", " boils", " at", " a", " temperature", " of"]:
        assert gatherer.next() is None
        gatherer.push(token)
    phrase = gatherer.next()
    assert phrase is not None
    assert phrase.text == "Water boils at a temperature "
    assert phrase.token_ends == (5, 11, 14, 16, 28)
    assert phrase.ending is Ending.WORD


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("You will find it in the box over there now", "You will find it in the box"),
        ("My favourite city is certainly New York because of it", "My favourite city is certainly"),
        ("He went by train to New York for it", "He went by train to New York"),
        ("There are about twenty or 30 people here today", "There are about twenty or 30 people"),
    ],
)
def test_a_phrase_does_not_end_after_a_word_that_leans_on_the_next(text: str, first: str) -> None:
    assert texts(text)[0] == first


def test_an_end_that_depends_on_what_follows_waits_for_it() -> None:
    gatherer = PhraseGatherer()
    gatherer.push("That is 3.")
    assert gatherer.next() is None
    gatherer.push("5 miles. ")
    assert gatherer.next() is None
    gatherer.push("Go")
    phrase = gatherer.next()
    assert phrase is not None
    assert phrase.text == "That is 3.5 miles. "


def test_the_end_gives_what_is_left() -> None:
    gatherer = PhraseGatherer()
    gatherer.push("Hello")
    assert gatherer.next() is None
    gatherer.end()
    assert gatherer.next() == Phrase("Hello", (5,), Ending.WORD)
    assert gatherer.next() is None
