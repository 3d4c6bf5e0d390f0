"""Sentences with numbers, dates and titles: many, seeded, and such that a voice can read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minmo.cli.data import app
from minmo.training.data.cleaning import clean
from minmo.training.data.written_forms import SOURCE, sentences


def test_every_kind_of_written_form_is_there() -> None:
    text = " ".join(one.text for one in sentences(3000, 0))
    for pattern in (
        r"\$\d[\d,]*\.\d\d", r"\d%", r"\d{4}-\d\d-\d\d", r"\b\d+/\d+/\d{4}\b", r"\d:\d\d p\.m\.",
        r"Dr\. [A-Z]", r"\d+(st|nd|rd|th) (St|Ave)\.", r"\d{3}-\d{3}-\d{4}", r"\d km/h",
        r"\d{3}0s", r"\b1/2\b", r"\d,\d{3}", r"VIII", r"[Tt]he FBI", r"i\.e\.", r"\d+-\d+",
    ):  # fmt: skip
        assert re.search(pattern, text), pattern


def test_all_can_be_said_and_none_comes_twice() -> None:
    texts = list(sentences(3000, 1))
    assert len({one.text for one in texts}) == 3000
    assert all(clean(one.text) == one.text for one in texts)
    assert {(one.kind, one.source) for one in texts} == {("sentence", SOURCE)}
    assert not any(".." in one.text for one in texts)


def test_they_are_drawn_by_seed() -> None:
    assert list(sentences(50, 0)) == list(sentences(50, 0)) != list(sentences(50, 1))
    assert list(sentences(0, 0)) == []


@pytest.mark.parametrize("times", [0, 2])
def test_the_command_mixes_them_in(tmp_path: Path, times: int) -> None:
    out = tmp_path / "texts.jsonl"
    arguments = ["texts", "--written", "200", "--no-phonemes", "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--instructed", str(times), "--json"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 200 * (1 + times)
    assert len([row for row in rows if "instruct" in row]) == 200 * times
