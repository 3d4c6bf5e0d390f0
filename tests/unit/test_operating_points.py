"""Thresholds of the full-duplex predictor travel in its file, and eagerness moves between them."""

import json

import pytest

from minmo.model.operating_points import (
    DEFAULT_POINTS,
    METADATA_KEY,
    OperatingPoint,
    from_metadata,
    point_at,
    to_metadata,
)

POINTS = (OperatingPoint(0, 0.9, 0.8), OperatingPoint(0.5, 0.5, 0.6), OperatingPoint(1, 0.1, 0.4))


@pytest.mark.parametrize(
    ("eagerness", "answer", "stop"),
    [(0, 0.9, 0.8), (0.25, 0.7, 0.7), (0.5, 0.5, 0.6), (0.75, 0.3, 0.5), (1, 0.1, 0.4)],
)
def test_eagerness_moves_thresholds(eagerness: float, answer: float, stop: float) -> None:
    point = point_at(POINTS, eagerness)
    assert (point.assistant_turn, point.user_turn) == pytest.approx((answer, stop))


def test_beyond_the_last_point_it_counts() -> None:
    (only,) = points = (OperatingPoint(0.5, 0.4, 0.3),)
    assert point_at(points, 0) is point_at(points, 1) is only
    assert point_at(POINTS[1:], 0.1) is POINTS[1]


def test_points_come_back_from_a_header_in_order() -> None:
    assert from_metadata(to_metadata(reversed(POINTS))) == POINTS
    assert from_metadata({"trained_against": "{}"}) == DEFAULT_POINTS


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("not json", "cannot be read"),
        ("[]", "is empty"),
        (json.dumps([{"eagerness": 0.5}]), "cannot be read"),
        (json.dumps([{"eagerness": 2, "assistant_turn": 0, "user_turn": 0}]), "eagerness is 2"),
        (json.dumps([{"eagerness": 1, "assistant_turn": 0, "user_turn": 0}] * 2), "two points"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(stored: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_metadata({METADATA_KEY: stored})
