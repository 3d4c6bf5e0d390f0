"""Intervals that hold what they should, and tables of them."""

import numpy as np
import pytest

from minmo.evaluation.report import Table, percent, plain
from minmo.evaluation.statistics import Estimate, bootstrap, difference, mean, rate, ratio


def test_a_rate_is_of_sums_and_an_interval_lies_around_it() -> None:
    found = bootstrap(4, rate([1, 0, 2, 0], [10, 5, 4, 1]))
    assert found.value == pytest.approx(3 / 20)
    assert found.low < found.value < found.high


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap(50, mean(values), seed=1) == bootstrap(50, mean(values), seed=1)
    assert bootstrap(50, mean(values), seed=1) != bootstrap(50, mean(values), seed=2)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        right = generator.random(100) < 0.4
        found = bootstrap(100, mean(right), resamples=200)
        held += found.low <= 0.4 <= found.high
    assert 180 <= held <= 198


def test_paired_differences_are_surer_than_the_figures() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(200) * 10
    first, second = hard + 1, hard + generator.random(200) * 0.1
    figure = bootstrap(200, mean(first))
    apart = bootstrap(200, difference(mean(first), mean(second)))
    assert apart.value == pytest.approx(float((first - second).mean()))
    assert (apart.high - apart.low) * 10 < figure.high - figure.low
    same = bootstrap(200, difference(mean(first), mean(first)))
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_ratio_to_nothing_is_not_told() -> None:
    found = bootstrap(3, ratio(mean([1, 0, 1]), mean([0, 0, 0])))
    assert np.isnan([found.value, found.low, found.high]).all()
    assert plain(found) == "- (- to -)"
    assert bootstrap(3, ratio(mean([1, 0, 1]), mean([1, 1, 1]))).value == pytest.approx(2 / 3)


def test_no_clips_tell_nothing() -> None:
    with pytest.raises(ValueError, match="no clips"):
        bootstrap(0, mean([]))


def test_a_table_in_markdown() -> None:
    cells = ("test", percent(Estimate(0.1234, 0.1, 0.15)))
    signed = percent(Estimate(-0.02, -0.03, 0.01), signed=True)
    assert signed == "-2.0 (-3.0 to +1.0)"
    assert Table("Errors", ("set", "WER"), [cells], ("A note",)).markdown() == (
        "Errors:\n\n| set | WER |\n| --- | --- |\n| test | 12.3 (10.0 to 15.0) |\n\nA note"
    )
