"""Changes of the floor, and how many of them are found within K steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minmo.model.duplex_scores import (
    Counts,
    Scored,
    best_threshold,
    changes,
    count_changes,
    match,
    share_below,
)


def flags(text: str) -> Tensor:
    return torch.tensor([sign == "1" for sign in text])


@pytest.mark.parametrize(
    ("yes", "asked", "found"),
    [
        ("0011001", "1111111", [2, 6]),
        ("1100", "1111", [0]),
        # What is not asked is passed over: the yes before it goes on behind it.
        ("0110110", "1110011", [1]),
        ("0100010", "1001111", [5]),
        ("0011", "0000", []),
        ("0111", "1001", [3]),
    ],
)
def test_a_change_is_a_yes_behind_a_no(yes: str, asked: str, found: list[int]) -> None:
    assert changes(flags(yes), flags(asked)) == found


@pytest.mark.parametrize(
    ("predicted", "true", "within", "hits"),
    [
        ([5], [5], 0, 1),
        ([5], [6], 0, 0),
        ([5], [6], 1, 1),
        ([7], [6], 1, 1),
        ([8], [6], 1, 0),
        # Each counts once.
        ([5, 6], [5], 3, 1),
        ([5], [4, 6], 3, 1),
        ([4, 6], [5, 7], 1, 2),
        ([1, 20], [2, 9, 19], 1, 2),
        ([], [3], 9, 0),
        ([3], [], 9, 0),
    ],
)
def test_a_hit_is_near_enough_and_used_once(
    predicted: list[int], true: list[int], within: int, hits: int
) -> None:
    assert match(predicted, true, within, within) == hits
    assert match(true, predicted, within, within) == hits


def test_what_comes_too_early_may_count_less() -> None:
    assert match([5], [8], 0, 3) == 1
    assert match([5], [8], 9, 2) == 0
    assert match([5, 8], [8], 0, 2) == 1
    scored = [Scored(torch.tensor([0.1, 0.9, 0.9, 0.9]), flags("0001"), flags("1111"))]
    assert count_changes(scored, 0.5, 2) == Counts(1, 1, 1)
    assert count_changes(scored, 0.5, 2, early=1) == Counts(0, 1, 1)


def test_f1_is_of_all_conversations_together() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.6, 0.9, 0.3, 0.7])
    first = Scored(probabilities, flags("000111"), flags("111111"))
    second = Scored(probabilities, flags("000000"), flags("111000"))
    assert count_changes([first, second], 0.5, 0) == Counts(0, 3, 1)
    counts = count_changes([first, second], 0.5, 1)
    assert counts == Counts(1, 3, 1)
    assert (counts.precision, counts.recall, counts.f1) == (1 / 3, 1, 0.5)
    assert count_changes([first], 0.8, 0) == Counts(1, 1, 1)
    # With recall twice as important as precision: 5 hits over 4 true and 3 predicted.
    assert counts.f_score(2) == pytest.approx(5 / 7)
    assert Counts(0, 0, 0).f1 == Counts(0, 0, 3).precision == Counts(0, 2, 0).recall == 0


def test_a_patient_threshold_is_higher_than_an_eager_one() -> None:
    noisy = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1, 0.7])
    sure = torch.tensor([0.1, 0.1, 0.1, 0.9, 0.9, 0.9])
    weak = torch.tensor([0.1, 0.1, 0.1, 0.4, 0.4, 0.4])
    scored = [
        Scored(noisy, flags("000000"), flags("111111")),
        Scored(sure, flags("000111"), flags("111111")),
        Scored(weak, flags("000111"), flags("111111")),
    ]
    counts = {one: count_changes(scored, one, 0) for one in (0.05, 0.3, 0.5, 0.65, 0.8)}
    patient, eager = (best_threshold(counts, beta) for beta in (0.5, 2.0))
    assert (patient, eager) == (0.8, 0.3)


def test_back_channels_are_heard_rightly_where_no_step_says_stop() -> None:
    stretches = [torch.tensor([0.1, 0.4]), torch.tensor([0.1, 0.6, 0.2]), torch.zeros(0)]
    assert share_below(stretches, 0.5) == 0.5
    assert share_below(stretches, 0.4) == 0
    assert math.isnan(share_below([torch.zeros(0)], 0.5))
