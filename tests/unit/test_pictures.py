"""Pictures: what is in them, and what stands in their way."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from minmo import pictures
from minmo.pictures import Mark, Stretch

BARS = [
    ("paper", {"LLM": 150.0, "nowhere": 0.0, "voice": 200.0}),
    ("here", {"LLM": 90.0, "rest": 1.0}),
]


def test_bars_name_their_parts_and_end_with_their_sum(tmp_path: Path) -> None:
    drawn = tmp_path / "bars.svg"
    pictures.stacked_bars(drawn, BARS, title="to first audio", unit="ms")
    text = drawn.read_text()
    for word in ("paper", "here", "LLM", "voice", "rest", "to first audio", "ms", "150", "350"):
        assert f">{word}</text>" in text.replace("> ", ">"), word
    assert ">nowhere</text>" not in text
    # A part too short for its number has none.
    assert text.count(">1</text>") == 0
    assert list(tmp_path.iterdir()) == [drawn]


def test_the_same_figures_are_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    for path in (first, second):
        pictures.stacked_bars(path, BARS, title="t", unit="ms")
    assert first.read_bytes() == second.read_bytes()


def test_a_timeline_names_lanes_kinds_and_moments(tmp_path: Path) -> None:
    drawn = tmp_path / "talk.svg"
    stretches = [Stretch("user", "speech", 0.5, 2.0), Stretch("MinMo", "answer", 3.0, 5.0)]
    marks = [Mark("user", "turn ended", 2.5), Mark("", "connection lost", 4.0)]
    pictures.timeline(drawn, stretches, marks, title="who spoke when")
    text = drawn.read_text()
    for word in ("user", "MinMo", "speech", "answer", "turn ended", "connection lost", "seconds"):
        assert f">{word}</text>" in text, word


def test_a_longer_conversation_is_a_wider_picture(tmp_path: Path) -> None:
    widths = []
    for seconds in (5.0, 60.0):
        drawn = tmp_path / f"{seconds}.png"
        pictures.timeline(drawn, [Stretch("user", "speech", 0.0, seconds)], title="t")
        with Image.open(drawn) as image:
            widths.append(image.width)
    assert widths[1] > 2 * widths[0]


def test_a_timeline_of_nothing_is_drawn(tmp_path: Path) -> None:
    drawn = tmp_path / "nothing.svg"
    pictures.timeline(drawn, [], title="nobody spoke")
    assert "nobody spoke" in drawn.read_text()


def test_curves_are_named(tmp_path: Path) -> None:
    drawn = tmp_path / "curves.svg"
    series = {"assistant": ([1, 5, 10], [0.7, 0.9, 1.0])}
    pictures.curves(drawn, series, title="F1", across="offset K", upwards="score")
    text = drawn.read_text()
    assert all(f">{word}</text>" in text for word in ("assistant", "F1", "offset K", "score"))


def test_another_ending_and_no_matplotlib_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.check(Path("figures.PNG"))
    with pytest.raises(ValueError, match=r"'figures\.pdf'; its name must end in \.svg or \.png"):
        pictures.check(Path("figures.pdf"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="needs matplotlib: pip install"):
        pictures.check(Path("figures.svg"))
