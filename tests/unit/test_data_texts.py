"""Texts for training: cleaned, kept apart, mixed fairly, and the same for the same seed."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from minmo.training.data import sources
from minmo.training.data.cleaning import LONGEST_WORDS, clean, sentences, words_of
from minmo.training.data.errors import DataError
from minmo.training.data.jsonl import drop_torn_line, read_lines, write_lines
from minmo.training.data.lines import SPLITS, Line
from minmo.training.data.mixing import lines_of, seconds_of, speakers_of, split_of
from minmo.training.data.sources import Text


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("It’s  “fine”—really…", "It's fine - really..."),
        ("Call me _Ishmael_.", "Call me Ishmael."),
        ("In 1984 it cost $5, 20% off!", "In 1984 it cost $5, 20% off!"),
        ("Wer ist schön?", None),
        ("...", None),
        ("", None),
        (" ".join(["word"] * LONGEST_WORDS), " ".join(["word"] * LONGEST_WORDS)),
        (" ".join(["word"] * (LONGEST_WORDS + 1)), None),
    ],
)
def test_a_text_is_made_sayable_or_refused(written: str, cleaned: str | None) -> None:
    assert clean(written) == cleaned


def test_a_long_sentence_is_cut_between_clauses_and_loses_no_word() -> None:
    text = "One is short. " + ", ".join(["This is a clause of seven short words"] * 6) + "."
    parts = list(sentences(text))
    assert parts[0] == "One is short."
    assert len(parts) > 2
    assert all(len(part.split()) <= 22 for part in parts)
    assert words_of(" ".join(parts)) == words_of(text)


def texts(count: int, source: str = "a", kind: str = "question") -> list[Text]:
    return [Text(f"Is this {source} number {n}?", kind, source) for n in range(count)]  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_lines_and_another_others() -> None:
    given = [*texts(300), *texts(100, "b", "turn")]
    assert lines_of(given, 3) == lines_of(given, 3)
    assert lines_of(given, 3) != lines_of(given, 4)


def test_no_speaker_and_no_text_is_in_two_sets() -> None:
    lines = lines_of(texts(2000), seed=0, hours=1)
    for what in ("voice", "text"):
        by_split = {
            split: {getattr(line, what) for line in lines if line.split == split}
            for split in SPLITS
        }
        assert all(by_split.values())
        assert not by_split["train"] & by_split["valid"]
        assert not by_split["train"] & by_split["test"]
        assert not by_split["valid"] & by_split["test"]
    assert [len(speakers_of(split, 0)) for split in ("test", "valid", "train")] == [40, 16, 848]


def test_a_text_stays_in_its_set_when_others_join() -> None:
    before = {line.text: line.split for line in lines_of(texts(500), seed=1)}
    after = {line.text: line.split for line in lines_of(texts(900) + texts(90, "b"), seed=1)}
    assert {text: after[text] for text in before} == before


def test_every_first_part_of_train_is_a_fair_mix() -> None:
    given = [*texts(4000, "big"), *texts(1000, "small"), *texts(500, "talk", "turn")]
    train = [line for line in lines_of(given, seed=0, hours=1.5) if line.split == "train"]
    assert len(train) > 2000
    for part in (train[:1000], train[1000:2000]):
        counts = Counter(line.source for line in part)
        # Half as often for a quarter of the texts; questions to turns as 0.5 to 0.2.
        assert counts["big"] / counts["small"] == pytest.approx(2, rel=0.25)
        assert (counts["big"] + counts["small"]) / counts["talk"] == pytest.approx(2.5, rel=0.25)


def test_weights_change_the_mix_and_unknown_ones_are_named() -> None:
    given = [*texts(2000, "a"), *texts(2000, "b")]
    train = [
        line for line in lines_of(given, 0, 0.5, {"a": 0.9, "b": 0.1}) if line.split == "train"
    ]
    counts = Counter(line.source for line in train)
    assert counts["a"] / counts["b"] == pytest.approx(9, rel=0.4)
    with pytest.raises(DataError, match="no source 'c'; there are a, b"):
        lines_of(given, 0, 0.5, {"c": 1})
    with pytest.raises(DataError, match="the weight of a is 0"):
        lines_of(given, 0, 0.5, {"a": 0})


def test_texts_that_run_out_come_again_with_other_voices() -> None:
    train = [line for line in lines_of(texts(50), seed=0, hours=0.2) if line.split == "train"]
    again = [line for line in train if line.text == train[0].text]
    assert len(again) > 3
    assert len({line.voice for line in again}) > 1
    assert sum(map(seconds_of, train)) == pytest.approx(0.2 * 3600, rel=0.02)
    assert len({line.id for line in train}) == len(train)


def test_without_hours_every_text_comes_once() -> None:
    lines = lines_of(texts(400), seed=0)
    assert sorted(line.text for line in lines) == sorted(text.text for text in texts(400))


def test_files_are_read_in_each_form(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "trivia.jsonl.gz", "wt") as file:
        file.write('{"question": "who is it?", "answer": "Me"}\n\n{"question": "Why?"}\n')
    turns = [{"speaker": "user", "text": "Hello there."}, {"speaker": "assistant", "text": "Hi."}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"turns": turns}) + "\n")
    (tmp_path / "book.jsonl").write_text('{"text": "It was a dark night. Yes. Rain fell on us."}\n')
    source, path = sources.named(f"quiz={tmp_path / 'trivia.jsonl.gz'}")
    assert list(sources.questions(source, path)) == [
        Text("Who is it?", "question", "quiz", ("Me",)),
        Text("Why?", "question", "quiz"),
    ]
    assert list(sources.dialogues(*sources.named(str(tmp_path / "talk.jsonl")))) == [
        Text("Hello there.", "turn", "talk", (), "user"),
        Text("Hi.", "turn", "talk", (), "assistant"),
    ]
    assert [text.text for text in sources.written("book", tmp_path / "book.jsonl")] == [
        "It was a dark night.",
        "Rain fell on us.",
    ]


def test_what_was_there_before_is_left_out() -> None:
    same = [Text("What's that?", "question", "a"), Text("Whats that", "question", "b")]
    assert list(sources.distinct(same)) == same[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "line 1: it cannot be read"),
        ("[1]", "line 1: it must be a JSON object"),
        ('{"answer": "x"}', "no text in 'question'; it has answer"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(DataError, match=message):
        list(sources.questions("bad", path))
    with pytest.raises(DataError, match="there is no file"):
        list(sources.questions("bad", tmp_path / "missing.jsonl"))


def test_lines_survive_a_file(tmp_path: Path) -> None:
    lines = [
        Line("train-1", "Who?", "question", "quiz", "train", 3, 1.1, ("Me", "You")),
        Line("test-1", "Hi.", "turn", "talk", "test", 4, 0.9, (), "assistant"),
    ]
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert write_lines(tmp_path / name, (line.to_json() for line in lines)) == 2
        assert [Line.from_json(row) for row in read_lines(tmp_path / name)] == lines
    assert not list(tmp_path.glob(".part*"))
    with pytest.raises(DataError, match="lacks 'voice'"):
        Line.from_json({"id": "1", "text": "", "kind": "turn", "source": "", "split": "test"})


def test_the_same_lines_make_the_same_compressed_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "a.jsonl.gz", [{"text": "x"}])
    assert (tmp_path / "one/a.jsonl.gz").read_bytes() == (tmp_path / "two/a.jsonl.gz").read_bytes()


def test_a_torn_line_goes_and_whole_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    drop_torn_line(path)
    path.write_text('{"a": 1}\n{"a": ')
    drop_torn_line(path)
    assert path.read_text() == '{"a": 1}\n'


def test_the_set_of_a_text_does_not_depend_on_the_machine() -> None:
    splits = Counter(split_of(text, seed=0) for text in texts(10_000))
    assert splits["test"] == pytest.approx(200, rel=0.25)
    assert splits["valid"] == pytest.approx(40, rel=0.5)
    assert split_of(Text("Is this a number 7?", "question", "a"), 0) == "train"
