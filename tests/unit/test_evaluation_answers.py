"""Which answers are right, and how near two answers are."""

import pytest
import torch

from minmo.evaluation.answers import aliases, is_right
from minmo.evaluation.closeness import cosine_distance, mean_divergence, rouge_l, word_f1
from minmo.evaluation.punctuation import mark_counts, marked_words


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("It was the Pearl Harbor attack.", ["The Pearl Harbor attack"], True),
        ("It was an attack on Pearl Harbor.", ["The Pearl Harbor attack"], False),
        ("It happened in nineteen fifty.", ["1950"], True),
        ("That was in 1950!", ["nineteen fifty"], True),
        ("About 1,950 people.", ["1950"], False),
        ("There are 12 players.", ["twelve"], True),
        ("A catalogue.", ["cat"], False),
        ("Rocky Nelson sang it.", ["Ricky Nelson (Rocky Nelson)"], True),
        ("ricky nelson", ["Ricky Nelson (Rocky Nelson)"], True),
        ("A film with ships.", ["Titanic (film)"], False),
        ("Titanic, of course.", ["Titanic (film)"], True),
        ("It is the dog star.", ["Sirius (the Dog Star)"], True),
        ("Paris.", ["London", "Paris"], True),
        ("Beowulf and Grendel", ["Beowulf & Grendel"], True),
        ("Padme Amidala", ["Padm\u00e9 Amidala"], True),
        ("A", ["A"], True),
        ("It is a blood type.", ["A"], False),
        ("Anything.", ["..."], False),
        ("", ["Paris"], False),
        ("Paris", [], False),
    ],
)
def test_an_answer_is_right_if_it_contains_a_right_one(
    answer: str, right: list[str], expected: bool
) -> None:
    assert is_right(answer, right) is expected


def test_parentheses_hold_another_name_or_an_explanation() -> None:
    assert aliases("Ricky Nelson (Rocky Nelson)") == [
        "Ricky Nelson (Rocky Nelson)",
        "Ricky Nelson",
        "Rocky Nelson",
    ]
    assert aliases("pints (liters)") == ["pints (liters)", "pints"]


def test_words_in_common_count_in_any_order_or_in_their_own() -> None:
    assert word_f1("the cat sat", "Sat the cat!") == 1
    assert rouge_l("the cat sat", "Sat the cat!") == pytest.approx(2 / 3)
    assert rouge_l("we all sat down", "we sat down on it") == pytest.approx(2 * 3 / 9)
    assert (word_f1("", ""), word_f1("yes", ""), rouge_l("yes", "no")) == (1, 0, 0)


def test_divergence_is_that_of_the_definition_and_none_from_itself() -> None:
    wanted = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    found = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    first = 0.5 * torch.tensor(0.5 / 0.25).log() + 0.5 * torch.tensor(0.5 / 0.75).log()
    assert mean_divergence(wanted, found) == pytest.approx(float(first) / 2, rel=1e-5)
    assert mean_divergence(wanted, wanted) == 0
    vector = torch.tensor([1.0, 2.0, 3.0])
    assert cosine_distance(vector, 2 * vector) == pytest.approx(0, abs=1e-12)
    assert cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1


def test_marks_stand_behind_words_but_not_behind_abbreviations() -> None:
    assert marked_words("Dr. Who, is it the U.S. ? Yes!") == [
        ("doctor", ""),
        ("who", ","),
        ("is", ""),
        ("it", ""),
        ("the", ""),
        ("us", "?"),
        ("yes", "."),
    ]
    assert marked_words("In the U.S.")[-1] == ("us", ".")
    assert marked_words('He said "no."')[-1] == ("no", ".")


def test_marks_are_compared_on_aligned_words() -> None:
    counts = mark_counts("Well, is it late? Yes, it is.", "Well is it, lade? Yes, it is so.")
    assert counts == {".": (0, 1, 1), ",": (1, 2, 2), "?": (1, 1, 1)}
    assert mark_counts("Yes.", "") == {".": (0, 0, 1), ",": (0, 0, 0), "?": (0, 0, 0)}
