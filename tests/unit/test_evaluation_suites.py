"""The suites, on systems whose mistakes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from minmo.audio.pcm import Samples, write_file
from minmo.evaluation import asr, sqa, understanding
from minmo.evaluation.answering import Answerer
from minmo.evaluation.clips import Choice, Clip, ClipSet, read_sets
from minmo.evaluation.errors import EvaluationError
from minmo.evaluation.results import without_nan
from minmo.evaluation.systems import Aligned, System, TrueText, Turn
from tests.unit.evaluation_modules import answerer, listener, llm, noise

TEXTS = {
    "one": ("Who sat on the mat?", "question", "Cat"),
    "two": ("Is it 1950?", "question", "1950|1951"),
    "three": ("Yes, it is.", "turn", ""),
    "four": ("who sat on the mat", "question", "dog"),
}


@dataclass
class Scripted:
    """Writes down what it is told to."""

    name: str
    texts: dict[str, str]
    uses: Sequence[str] = ()
    heard: list[str] = field(default_factory=list)

    def listen(self, clip: Clip, samples: Samples) -> Turn:
        self.heard.append(clip.id)
        return Turn(self.texts.get(clip.id, clip.text), None, 0.05, 0.02)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    folder = tmp_path_factory.mktemp("speech") / "quiz"
    folder.mkdir()
    lines = ["id,text,kind,answers"]
    for number, (name, (text, kind, answers)) in enumerate(TEXTS.items()):
        write_file(folder / f"{name}.wav", noise(8000, seed=number), 16_000)
        lines.append(f'{name},"{text}",{kind},{answers}')
    (folder / "quiz.csv").write_text("\n".join(lines) + "\n")
    (found,) = read_sets([folder], Choice())
    return found


def made_with(system: System) -> dict[str, Any]:
    return {"weights": "abc"}


def test_word_error_rates_are_of_normalised_words(clips: ClipSet) -> None:
    wrong = {"one": "who sat on a mat", "two": "Is it nineteen fifty", "three": "yes it is so"}
    systems = [Scripted("stream", wrong), Scripted("whole", {"one": ""})]
    report = asr.measure([clips], systems, made_with=made_with)
    first, second = report.rows
    assert first.wer.value == pytest.approx(2 / 17)
    assert second.wer.value == pytest.approx(5 / 17)
    assert first.wer.low <= first.wer.value <= first.wer.high
    assert (first.clips, first.seconds) == (4, 2.0)
    assert first.real_time_factor == pytest.approx(0.1)
    assert first.latency_ms == pytest.approx(20)
    (apart,) = report.differences
    assert (apart.system, apart.than) == ("stream", "whole")
    assert apart.wer.value == pytest.approx(-3 / 17)
    assert [table.title for table in report.tables()] == [
        "Speech recognition",
        "Differences on the same clips",
    ]
    assert report.tables()[0].rows[0][:3] == ("quiz", "stream", report.tables()[0].rows[0][2])


@pytest.mark.parametrize(
    ("expected", "found", "errors"),
    [
        ("One, two.", "one two", (0, 2, 0, 7)),
        ("one two", "", (2, 2, 7, 7)),
        ("...", "um so", (2, 0, 5, 0)),
        ("$5", "five dollars", (0, 2, 0, 12)),
        ("a b c", "a c", (1, 1, 1, 1)),
    ],
)
def test_errors_are_counted(expected: str, found: str, errors: tuple[int, ...]) -> None:
    counts = asr.error_counts(expected, found)
    assert counts[:2] == errors[:2] if expected != "a b c" else counts[0] == 1
    if expected != "a b c":
        assert counts == errors


def test_a_second_run_hears_only_what_is_missing(clips: ClipSet, tmp_path: Path) -> None:
    few = ClipSet(clips.name, clips.clips[:2], files=clips.files)
    first, second = Scripted("stream", {}), Scripted("stream", {})
    seen: list[tuple[int, int]] = []
    asr.measure([few], [first], made_with=made_with, folder=tmp_path)
    report = asr.measure(
        [clips],
        [second],
        made_with=made_with,
        folder=tmp_path,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    assert (first.heard, second.heard) == (["one", "two"], ["three", "four"])
    assert seen == [(2, 4), (3, 4), (4, 4)]
    assert report.rows[0].clips == 4
    with pytest.raises(EvaluationError, match="made with another weights"):
        asr.measure([clips], [second], made_with=lambda system: {"weights": "x"}, folder=tmp_path)


class Parrot(Answerer):
    """Answers with what it reads, and a cat if it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def answers(self, turns):  # type: ignore[no-untyped-def]
        from minmo.evaluation.answering import Answer

        for key, turn in turns:
            self.asked.append(turn.text)
            said = "It was the cat." if turn.text.startswith("Who") else turn.text
            yield key, Answer(said, [1])

    def first_token_s(self, system: System, clip: Clip, samples: Samples) -> float:
        return {"one": 0.1, "two": 0.2}.get(clip.id, 0.3)


def test_spoken_questions_are_answered_as_rightly_as_what_was_heard(
    clips: ClipSet, tmp_path: Path
) -> None:
    questions = clips.chosen(Choice(with_answers=True))
    systems: list[System] = [TrueText(), Scripted("cascade", {"two": "Is it?"})]
    parrot = Parrot()
    run = {"made_with": made_with, "folder": tmp_path, "latency_clips": 2}
    report = sqa.measure([questions], systems, parrot, **run)  # type: ignore[arg-type]
    text, cascade = report.rows
    assert text.accuracy.value == pytest.approx(2 / 3)
    assert cascade.accuracy.value == pytest.approx(1 / 3)
    assert cascade.ratio_to_text is not None
    assert cascade.ratio_to_text.value == pytest.approx(1 / 2)
    assert cascade.first_token_ms == pytest.approx(150)
    assert cascade.first_token_p90_ms == pytest.approx(190)
    # What was heard rightly has been answered before.
    assert parrot.asked == [clip.text for clip in questions.clips] + ["Is it?"]
    assert without_nan(report.to_json())["rows"][0]["first_token_ms"] is None
    again = Parrot()
    assert sqa.measure([questions], systems, again, **run).rows[1] == cascade  # type: ignore[arg-type]
    assert again.asked == []


def test_speech_is_understood_beside_its_text(clips: ClipSet, tmp_path: Path) -> None:
    aligned = Aligned(listener(llm()))
    perfect = Scripted("cascade", {})
    run = {"llm_sha256": "abc", "made_with": made_with, "folder": tmp_path, "pair_count": 2}
    systems: list[System] = [aligned, perfect]
    report = understanding.measure([clips], systems, answerer(), **run)  # type: ignore[arg-type]
    marks = {(row.system, row.mark): row for row in report.punctuation}
    assert [marks["cascade", mark].f1.value for mark in ".,?"] == [1, 1, 1]
    assert marks["cascade", "?"].marks == 2
    assert marks["aligned", "?"].f1.value < 0.5
    heard, read = report.dialogue
    assert (read.word_f1.value, read.rouge_l.value, read.same_first_token.value) == (1, 1, 1)
    assert read.divergence.value == pytest.approx(0, abs=1e-5)
    assert heard.divergence.value > 0.01
    apart = {(row.system, row.kind): row for row in report.variations}
    assert {kind for _, kind in apart} == {"spoken again", "faster", "quieter"}
    assert apart["aligned", "faster"].distance.value > 1e-4
    assert apart["cascade", "faster"].distance.value == pytest.approx(0, abs=1e-6)
    assert apart["cascade", "faster"].same_words == 1
    assert apart["cascade", "spoken again"].pairs == 1
    assert (report.text[0].questions, report.llm_sha256) == (3, "abc")
    tables = report.tables()
    assert [len(table.rows) for table in tables] == [6, 2, 6, 1]
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    perfect.heard.clear()
    again = understanding.measure([clips], systems, answerer(), **run)  # type: ignore[arg-type]
    assert again.to_json() == report.to_json()
    assert perfect.heard == []
